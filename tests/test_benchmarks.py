"""The benchmarks run from end to end in a smoke size, and what they compute around their measurements is right."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.processes import run_script
from tests.toy import needs_bitsandbytes

FOLDER = Path(__file__).parents[1] / "benchmarks"
needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="TRL is not installed: pip install -e .[bench]"
)


def run(script: str, *arguments: str) -> str:
    return run_script(FOLDER / script, *arguments)


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmarks, which see each other as scripts do."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.mark.slow
@needs_trl
def test_vs_trl_prints_one_table(tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    text = run("vs_trl.py", "--smoke", "--config", "tiny-mu2", "--repeats", "1", "--out", str(out))
    assert out.read_text() == text
    for row in ("rollout, s", "scoring, s", "update, s", "step, s", "peak memory of the update", "trained tokens/s"):
        assert row in text
    assert "Same batch, llama" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {8}


@needs_trl
@pytest.mark.parametrize("name", ["tiny", "small"])
def test_both_sides_compute_the_same_loss_and_gradient(benchmark_module: Any, tmp_path: Path, name: str) -> None:
    shapes = benchmark_module("shapes")
    agreement = benchmark_module("agreement")
    result = agreement.compare(shapes.smoke(shapes.SHAPES[name]), tmp_path, torch.device("cpu"))
    assert result.losses[0] == pytest.approx(result.losses[1], abs=1e-6)
    assert abs(result.losses[0]) > 1e-4
    assert max(result.gradient_errors) < 1e-5


@pytest.mark.parametrize(
    ("subject", "line"),
    [
        ("packing", "layout for 16 rows"),
        ("passes", "M weights"),
        ("copies", "tiny: "),
        ("joins", "fraction 0.1"),
    ],
)
def test_constants_runs(subject: str, line: str) -> None:
    assert line in run("constants.py", subject, "--smoke", "--repeats", "1")


def test_shared_beginning_prints_a_line_per_share() -> None:
    text = run("shared_beginning.py", "--smoke", "--prompts", "3", "--tokens", "80", "--repeats", "1")
    assert [line.split("|")[1].strip() for line in text.splitlines()[4:]] == ["0%", "25%", "50%", "75%"]


@pytest.mark.slow
def test_the_check_of_a_gpu_prints_one_table_and_goes_on_after_a_part_that_fails(
    benchmark_module: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu_check, out = benchmark_module("gpu_check"), tmp_path / "table.md"
    few = ["--device", "cpu", "--tiny", "--out", str(out), "--only"]
    assert gpu_check.main([*few, "tests"]) == 0
    assert capsys.readouterr().out == out.read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.read_text().splitlines() if "|" in line]
    assert [row[:2] for row in rows[2:]] == [["tests", "marked cuda"]]
    assert rows[2][2].startswith("2 skipped")
    assert gpu_check.main([*few, "memory", "SmolLM2-135M", "--seconds", "0"]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if "failed" in line]
    assert failed == [f"| {part} | all of it |  |  | failed: it took longer than 0 s |" for part in (
        "memory", "SmolLM2-135M")]  # fmt: skip


@pytest.mark.slow
def test_the_check_of_a_gpu_measures_the_memory_of_each_method() -> None:
    mark = "gpu-check row: "
    text = run("gpu_check.py", "--part", "memory", "--device", "cpu", "--tiny")
    rows = [json.loads(line[len(mark) :]) for line in text.splitlines() if line.startswith(mark)]
    methods = ["GRPO, GB", "GRPO + refinement, GB"]
    for critic in ("shared", "adapter", "separate"):
        methods += [f"PPO {critic}, GB", f"GRPO's share of PPO {critic}"]
    assert [row[1] for row in rows] == methods
    assert all(row[3:] == ["", ""] for row in rows), "tiny models have no goals"


def test_the_check_of_a_gpu_measures_a_step_beside_trl(benchmark_module: Any) -> None:
    gpu_check = benchmark_module("gpu_check")
    few = gpu_check.parse_arguments(["--device", "cpu", "--tiny"])
    found: dict[str, Any] = {}
    has_trl = importlib.util.find_spec("trl") is not None
    with nullcontext() if has_trl else pytest.raises(ModuleNotFoundError, match="trl"):
        for row in gpu_check.PARTS["SmolLM2-135M"].rows(few):
            found[row.what] = row
    assert found["graphed_decoding"].ours == "not used: it is for CUDA"
    assert found["rollout without graphs, s"].result.endswith(" x")
    for what in ("step, s", "rollout, s", "update, s", "generated tokens/s", "peak memory above the model, GB"):
        row = found[what]
        assert float(row.ours) >= 0
        assert (row.beside.startswith("TRL "), row.result.endswith(" x")) == (has_trl, has_trl)
    assert float(found["step, s"].ours) >= float(found["rollout, s"].ours)
    assert all(row.is_good for row in found.values())


def test_the_check_of_a_gpu_needs_one(benchmark_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_check = benchmark_module("gpu_check")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch finds no CUDA device here"):
        gpu_check.main([])
    with pytest.raises(SystemExit, match="add --tiny"):
        gpu_check.main(["--device", "cpu"])


def test_goals_of_the_check_of_a_gpu_by_hand(benchmark_module: Any) -> None:
    gpu_check = benchmark_module("gpu_check")
    assert gpu_check._verdict(True) == "reached"
    assert gpu_check.Row("memory", "GRPO, GB", "4.05", result=gpu_check._verdict(True)).is_good
    assert not gpu_check.Row("memory", "GRPO, GB", "4.15", result=gpu_check._verdict(False)).is_good
    assert not gpu_check.Row("tests", "marked cuda", "", result="failed: 1 failed").is_good
    assert sum(part.seconds for part in gpu_check.PARTS.values()) <= 8 * 60


@pytest.mark.slow
def test_logprobs_runs() -> None:
    assert "naive / chunked, memory" in run(
        "logprobs.py", "--n", "2", "--t", "16", "--vocab", "256", "--hidden", "16", "--repeats", "1"
    )


def test_first_rewards_prints_a_line_per_task_and_temperature(
    benchmark_module: Any, tiny_model: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--rows", "6", "--group_size", "3", "--temperatures", "0.7", "--cap", "4", "--device", "cpu"]
    benchmark_module("first_rewards").main(["--model", tiny_model("llama"), "--tasks", "Arithmetic", *few])
    rows = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()]
    # Random weights give no answer, and do not end within four tokens.
    found = [row[1:-1] for row in rows if row[1:2] == ["Arithmetic"]]
    assert [row[:3] + row[-1:] for row in found] == [["Arithmetic", "0", "6", ""], ["Arithmetic", "0.7", "6", "0 of 2"]]
    assert {(row[3], row[4], row[6]) for row in found} == {("0%", "0%", "0.00")}


def test_first_rewards_measures_data_sets_of_reasoning_gym(
    benchmark_module: Any, tiny_model: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("reasoning_gym")
    few = ["--rows", "4", "--group_size", "2", "--temperatures", "1.0", "--device", "cpu"]
    benchmark_module("first_rewards").main(["--model", tiny_model("llama"), "--gym", "gcd", "coin_flip", *few])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [[cell.strip() for cell in row[:3]] for row in rows[1:]] == [
        [name, temperature, "4"] for name in ("gcd", "coin_flip") for temperature in ("0", "1")
    ]


@pytest.mark.slow
def test_learning_rates_trains_a_rate_once(
    benchmark_module: Any, tiny_model: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "1", "--trainer.limit_val_batches", "1"]
    few += ["--data.val_batch_size", "2", "--data.sampling.max_new_tokens", "4", "--export.enabled", "false"]
    arguments = ["--runs", str(tmp_path), "--lr", "1e-3", "--"]
    arguments += ["--model.init_args.policy.lora", "null", "--model.init_args.policy.path", tiny_model("llama"), *few]
    for _ in range(2):
        benchmark_module("learning_rates").main(arguments)
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    first, again = rows[2], rows[5]
    assert [cell.strip() for cell in first[:3]] == ["1e-3", "1", "0.0% 0.0% 0.0%"]
    assert first == again
    (config,) = tmp_path.glob("*/config*.yaml")
    assert yaml.safe_load(config.read_text())["model"]["init_args"]["policy"].get("lora") is None


def test_rollouts_ahead_prints_both_variants() -> None:
    text = run("rollouts_ahead.py", "--seconds", "0.02", "0.01", "--steps", "4")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| 0.02")]
    assert [row[:3] for row in rows] == [["0.02", "0.01", "0"], ["0.02", "0.01", "1"]]
    assert [bool(row[4]) for row in rows] == [False, True]


def test_refinement_prints_what_each_mode_costs() -> None:
    text = run("refinement.py", "--smoke", "--config", "tiny", "--repeats", "1", "--beta", "0.1")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [row.split(",")[0] for row in rows[2:]] == [f"| {name}" for name in (
        "rollout", "scoring", "reference", "update", "step")]  # fmt: skip
    assert {row.count("|") for row in rows} == {7}
    assert " 0 further attempts" not in text


@pytest.mark.slow
def test_the_choice_of_prompts_prints_one_table() -> None:
    arguments = "--tokens 300 --seeds 1 2 --warm-steps 1 --prompts 2 --group-size 2 --tasks quickstart"
    rows = [line.split("|") for line in run("prompt_choice.py", *arguments.split()).splitlines() if line[:1] == "|"]
    assert [row[2].strip() for row in rows[2:]] == ["warm start", "plain", "resampled", "curriculum"]
    assert {len(row) for row in rows} == {11}
    assert all(int(row[6]) >= 300 for row in rows[3:])


@pytest.mark.slow
def test_the_values_of_ppo_print_one_table(benchmark_module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    values = benchmark_module("ppo_values")
    arguments = "--tokens 300 --seeds 1 --warm-steps 1 --prompts 2 --group-size 2 --stored 1 --val-size 4"
    values.main([*arguments.split(), "--variants", "plain", "value_lam 1, pretrained"])
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert [row[1].strip() for row in rows[2:]] == ["warm start", "plain", "value_lam 1, pretrained"]
    assert {len(row) for row in rows} == {10}
    assert all(int(row[7]) >= 300 for row in rows[3:])


@pytest.mark.slow
def test_what_episodes_teach_is_measured_before_and_after(
    benchmark_module: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "1", "--data.prompts_per_step", "2"]
    few += ["--data.task.init_args.val_size", "2", "--data.task.init_args.test_size", "6"]
    benchmark_module("episodes_learn").main(["--runs", str(tmp_path), "--studies", "tools", "--seeds", "1", "--", *few])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[:2] for row in rows[1:]] == [
        ["calculator", "warm start"], ["calculator", "RL"], ["no tool", "warm start"], ["no tool", "RL"],
    ]  # fmt: skip
    assert {len(row) for row in rows} == {8}
    for file in (*tmp_path.glob("*/config.yaml"), *tmp_path.glob("*/warm_start/config.yaml")):
        environment = yaml.safe_load(file.read_text())["data"].get("environment")
        assert ("no-tool" in str(file.relative_to(tmp_path))) == (environment is None)


def test_what_is_measured_of_games_by_hand(benchmark_module: Any) -> None:
    def game(won: bool, *said: str, guess: int | None, purpose: str = "pass@k") -> dict[str, Any]:
        prompt = [{"role": "user", "content": text} for text in said]
        return {"prompt": prompt, "info": {"guess": guess}, "correct": won, "sampled_for": purpose, "metadata": {}}

    records = [
        game(True, "1 to 9.", guess=4), game(False, "1 to 9.", "3", "higher", guess=4),
        game(False, "1 to 9.", "4", "higher", guess=4),
        game(False, "1 to 9.", "3", "higher", "?", "no number", "it is 6", "lower", guess=6),
        game(True, "1 to 9.", "3", "higher", "?", "no number", "it is 6", "lower", guess=5),
        game(False, "1 to 9.", guess=None), game(True, "1 to 9.", guess=4, purpose="accuracy"),
    ]  # fmt: skip
    episodes = benchmark_module("episodes_learn")
    fits = [episodes.fits_all_hints(record) for record in records]
    assert fits == [True, True, False, False, True, False, True]
    # The shares with Wilson's intervals of 2 of 6, 3 of 6 and 1 of 1.
    assert [episodes.cell(column, [records]) for column in episodes.STUDIES["guess"].columns.values()] == [
        "33.3 % (9.7 to 70.0): 33.3", "50.0 % (18.8 to 81.2): 50.0", "100.0 % (20.7 to 100.0): 100.0",
    ]  # fmt: skip


@pytest.mark.slow
def test_scaling_measures_a_point_and_prints_exponents(benchmark_module: Any) -> None:
    scaling = benchmark_module("scaling")
    args = scaling.parse_arguments(["--device", "cpu"])
    memory = scaling._in_process("completion", 32, args, memory=True)
    assert memory.keys() == {"rollout MiB", "update MiB"}
    seconds = scaling.measure_point("completion", 32, torch.device("cpu"), memory=False)
    assert seconds.keys() == {"rollout s", "update s"}
    assert min(seconds.values()) > 0
    table = scaling.rows("completion", (32, 64), {"rollout s": [[1.0, 1.0], [2.0, 2.0]], "update MiB": [[0.0], [1.0]]})
    assert table == ["| completion | rollout s | 32, 64 | 1, 2 | 1.00 ± 0.00 | 1.00 | at most linear |"]


def test_a_fit_finds_the_exponent_and_its_verdict(benchmark_module: Any) -> None:
    scaling = benchmark_module("scaling")
    sizes = [1.0, 2.0, 4.0, 8.0]
    square = scaling.fit(sizes, [[3 * size**2, 3 * size**2] for size in sizes])
    assert (square.exponent, square.last) == pytest.approx((2.0, 2.0))
    assert square.error == pytest.approx(0.0, abs=1e-6)
    assert "not at most linear" in scaling.verdict("group", "update s", square)
    linear = scaling.fit(sizes, [[5 * size] for size in sizes])
    assert scaling.verdict("group", "update s", linear) == "at most linear"
    assert "not flat" in scaling.verdict("group", "update MiB", linear)
    # A fixed cost hides the growth from the fit, but not from the last doubling.
    late = scaling.fit(sizes, [[100.0], [100.0], [100.0], [800.0]])
    assert late.last == pytest.approx(3.0)
    assert late.error > 0


def test_floors_by_hand(benchmark_module: Any) -> None:
    shapes, floors = benchmark_module("shapes"), benchmark_module("floors")
    dims = {
        "vocab_size": 10, "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }  # fmt: skip
    shape = shapes.Shape("hand", "", "llama", dims, prompts=1, group_size=2)
    work = floors.Work.of(shape)
    # q and o 4 x 4 each, k and v 2 x 4 each; gate, up and down 8 x 4 each; head 10 x 4.
    assert (work.body, work.head, work.cache_width) == (16 + 16 + 8 + 8 + 96, 40, 4)
    # One prompt of 1 token, 2 rows of 1 token: 3 tokens through the body, 2 through the head, attending to 1 + 2 + 2.
    attention = 3 * 4 * 4 * (1 + 2 + 2)
    compute = 6 * (144 * 3 + 40 * 2) + attention
    endless = floors.Rates(1.0, float("inf"))
    assert floors.update_floor(shape, [1, 1], [1, 1], endless) == pytest.approx(compute)
    assert floors.update_floor(shape, [1, 1], [1, 1], floors.Rates(float("inf"), 1.0)) == 7 * 4 * 184
    # Decoding: all weights and the cache of 1 token of 2 rows are read once, in float32.
    assert floors.rollout_floor(shape, [1, 1], [1, 1], floors.Rates(float("inf"), 1.0)) == (184 + 4 * 2) * 4


def test_lengths_are_about_as_asked_for(benchmark_module: Any, tmp_path: Path) -> None:
    shapes, our_side = benchmark_module("shapes"), benchmark_module("our_side")
    from dataclasses import replace

    shape = replace(shapes.smoke(shapes.SHAPES["tiny"]), group_size=64, cap=40, mean=10.0)
    step = our_side.OurSide(shape, shapes.build(shape, tmp_path / "ends"), torch.device("cpu")).step(1)
    # Geometric of mean 10, cut at 40: mean 9.85; the standard error over 128 rows is 0.8.
    assert 6.5 < sum(step.lengths) / len(step.lengths) < 13.5
    assert len(set(step.lengths)) > 10
    capped = replace(shape, mean=None)
    step = our_side.OurSide(capped, shapes.build(capped, tmp_path / "cap"), torch.device("cpu")).step(1)
    assert set(step.lengths) == {40}
    assert step.seconds["step"] >= step.seconds["rollout"] + step.seconds["update"] > 0


def test_ppo_and_grpo_take_their_turns_on_the_same_rollouts(tmp_path: Path, tiny_model: Callable[[str], str]) -> None:
    for split in ("train", "test"):
        rows = [json.dumps({"question": f"{row} + 1?", "answer": f"#### {row + 1}"}) for row in range(8)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    arguments = ["--model", tiny_model("llama"), "--data", str(tmp_path), "--cap", "4", "--lora", "2"]
    arguments += ["--steps", "1", "--warm-up", "0", "--case", "signal, beta 0.04"]
    turns = [run("ppo_vs_grpo.py", *arguments, "--turn", name) for name in ("GRPO", "PPO adapter")]
    ((grpo,), (ppo,)) = (json.loads(turn.splitlines()[-1]) for turn in turns)
    assert grpo["rollouts"] == ppo["rollouts"]
    assert ppo.keys() - grpo.keys() == {"value"}
    assert all(step["step"] > step["rollout"] + step["reference"] + step["update"] > 0 for step in (grpo, ppo))


@pytest.mark.slow
@needs_bitsandbytes
def test_qlora_prints_a_line_per_way() -> None:
    lines = run("qlora.py", "--smoke", "--dtype", "float32").splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| ")][1:]
    assert [row[1] for row in rows] == ["merged", "adapter beside the weights", "unpacked and merged"]
    assert all(float(row[2]) < 1e-5 for row in rows)


@pytest.mark.slow
def test_sampler_gap_prints_a_line_per_setting() -> None:
    rows = [line.split(" | ") for line in run("sampler_gap.py", "--smoke").splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows[:2]] == ["weights, arithmetic", "float32"]
    assert len(rows) == 8
    means = [float(row[1]) for row in rows[1:]]
    assert means[0] < 1e-5 < means[-1], "only an adapter over bfloat16 makes a gap in so small a model"


@pytest.mark.slow
def test_precision_compares_steps_of_three_precisions() -> None:
    lines = run("precision.py", "--smoke", "--repeats", "1").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == ["float32", "bf16-mixed", "bfloat16 weights"]
    assert rows[0][4] == "**1.00**"
    assert float(rows[0][5]) < 1e-5


def test_step_logging_compares_two_ways_to_log() -> None:
    text = run("step_logging.py", "--repeats", "1", "--steps", "2")
    assert [line.count("|") for line in text.splitlines() if line.startswith("|")] == [5, 5, 5]
