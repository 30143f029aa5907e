"""``grpo compare``: reading, grouping and naming of runs; the contents of the report; user errors."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from grpo_lightning.__main__ import main
from grpo_lightning.callbacks.predictions import problem_result
from grpo_lightning.commands.compare.dynamics import AXES, PANELS, band, progress
from grpo_lightning.commands.compare.methods import IGNORED_KEYS, PASSIVE_CALLBACKS, find_methods
from grpo_lightning.commands.compare.runs import read_run
from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout.experience import Outcome
from grpo_lightning.rollout.records import record
from grpo_lightning.types import FinishReason, Verdict
from tests.toy import experience
from tests.written_runs import write_run, write_test

STEPS, TOKENS, TIME, _ = AXES
REWARD, ACCURACY, *_, MEMORY = PANELS


def names(*arguments: Path | str) -> dict[str, list[Any]]:
    return {method.name: method.seeds for method in find_methods([str(argument) for argument in arguments])}


def totals(step_tokens: int, steps: int = 3) -> dict[str, list[tuple[int, float]]]:
    return {
        "total/rollout_tokens": [(step, step_tokens * (step + 1)) for step in range(steps)],
        "total/train_tokens": [(step, 3 * step_tokens * (step + 1)) for step in range(steps)],
        "total/wall_s": [(step, 60.0 * (step + 1)) for step in range(steps)],
        "total/cpu_s": [(step, 90.0 * (step + 1)) for step in range(steps)],
        "reward/mean": [(step, 0.1 * step) for step in range(steps)],
        "memory/rollout_peak_gib": [(step, 1.0 + step) for step in range(steps)],
        "memory/update_peak_gib": [(0, 2.5), (1, 0.5), (2, 0.5)],
        "val/accuracy": [(0, 0.25), (steps, 0.75)],
    }


# -- methods ----------------------------------------------------------------------------------------------------------


def test_seeds_of_one_config_are_one_method_and_labels_name_the_differences(tmp_path: Path) -> None:
    for seed in (2, 1):
        write_run(tmp_path / f"grpo{seed}", seed)
        write_run(tmp_path / f"ten{seed}", seed, data={"group_size": 10})
        write_run(tmp_path / f"ppo{seed}", seed, "PPOModule", critic="adapter")
        write_run(tmp_path / f"refined{seed}", seed, data={"refinement": {"mode": "distill"}})
        write_run(tmp_path / f"sft{seed}", seed, "SFTModule")
    assert names(tmp_path / "*") == {
        "GRPO, group_size 8": [1, 2],
        "GRPO, group_size 10": [1, 2],
        "PPO (adapter critic)": [1, 2],
        "GRPO + refinement (distill)": [1, 2],
        "SFT": [1, 2],
    }


def test_a_separate_warm_start_per_seed_does_not_split_a_method(tmp_path: Path) -> None:
    for seed in (1, 2):
        warm = write_run(tmp_path / f"warm/{seed}", seed, "SFTModule")
        other = write_run(tmp_path / f"other/{seed}", seed, "SFTModule", max_grad_norm=9)
        write_run(tmp_path / f"a/{seed}", seed, policy={"path": str(warm / "policy")})
        write_run(tmp_path / f"b/{seed}", seed, policy={"path": str(other / "policy")})
        own = tmp_path / f"c/{seed}"
        write_run(own, seed, beta=1, policy={"path": str(own / "warm_start/policy")})
        write_run(own / "warm_start", seed, "SFTModule")
    assert names(tmp_path / "a") == {"GRPO": [1, 2]}
    assert names(tmp_path / "c") == {"GRPO": [1, 2]}
    assert len(names(tmp_path / "a", tmp_path / "b")) == 2, "what the policies were trained on differs"


def test_callbacks_that_affect_training_define_a_method(tmp_path: Path) -> None:
    found = {
        "plain": ["StepProgressBar"],
        "watched": ["VRAMProfiler", "RunSummary", "HealthCheck", "LearningRateMonitor", "RolloutLogger"],
        "stopped": ["TokenBudget"],
        "another": ["MyHealthCheck"],
    }
    for seed, (name, callbacks) in enumerate(found.items()):
        run = write_run(tmp_path / name, seed)
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["trainer"]["callbacks"] = [{"class_path": f"grpo_lightning.callbacks.{name}"} for name in callbacks]
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert names(tmp_path) == {
        "GRPO, callbacks none": [0, 1],
        "GRPO, callbacks TokenBudget": [2],
        "GRPO, callbacks MyHealthCheck": [3],
    }


def test_options_of_the_standard_callbacks_do_not_define_a_method() -> None:
    from grpo_lightning.cli.grpo_cli import CALLBACKS

    assert CALLBACKS.keys() <= set(IGNORED_KEYS)
    assert set(CALLBACKS.values()) <= set(PASSIVE_CALLBACKS)


def test_a_model_that_was_only_tested_is_a_method_of_its_own(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path / f"trained-{seed}", seed, correct="110")
    untouched = write_run(tmp_path / "untouched", 1, curves={"test/accuracy": [(0, 1 / 3)]})
    write_test(tmp_path / "results", "100")
    (tmp_path / "results/test_results.jsonl").rename(untouched / "test_results.jsonl")
    arguments = [str(tmp_path / "trained-*"), str(untouched)]
    methods = find_methods(arguments)
    assert [(method.name, len(method.runs), len(method.tested)) for method in methods] == [
        ("GRPO", 2, 2), ("without training", 1, 1)
    ]  # fmt: skip
    run = methods[1].runs[0]
    assert (run.is_trained, run.steps, methods[0].runs[0].steps) == (False, 0, 1)
    main(["compare", *arguments, "--out", str(tmp_path / "out"), "--resamples", "200"])
    text = (tmp_path / "out/report.md").read_text()
    assert "| without training | 1 | 33.3 % |" in text
    assert "| without training vs GRPO | -33.3 |" in text


def test_a_warm_start_from_the_best_policy_has_the_recipe_of_its_run(tmp_path: Path) -> None:
    for seed in (1, 2):
        warm = write_run(tmp_path / f"warm/{seed}", seed, "SFTModule")
        write_run(tmp_path / f"best/{seed}", seed, policy={"path": str(warm / "policy_best")})
        write_run(tmp_path / f"last/{seed}", seed, policy={"path": str(warm / "policy")})
    assert names(tmp_path / "best") == {"GRPO": [1, 2]}
    assert len(names(tmp_path / "best", tmp_path / "last")) == 2, "another policy of the same run"


def test_names_patterns_and_folders_of_runs(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_run(tmp_path / f"runs/seed-{seed}", seed, max_grad_norm=seed)
    assert names(f"mine={tmp_path}/runs/seed-[12]") == {"mine": [1, 2]}
    assert names(tmp_path / "runs") == {f"GRPO, max_grad_norm {seed}": [seed] for seed in (1, 2, 3)}
    assert names(f"all={tmp_path / 'runs'}") == {"all": [1, 2, 3]}
    assert names(f"x={tmp_path}/runs/seed-1", f"x={tmp_path}/runs/seed-3") == {"x": [1, 3]}
    write_run(tmp_path / "a=b", 7)
    assert names(tmp_path / "a=b") == {"GRPO": [7]}, "a folder whose name has a = in it"
    assert list(names(f"GRPO={tmp_path}/runs/seed-1", tmp_path / "a=b")) == ["GRPO", "GRPO'"]


def test_a_repeat_of_a_seed_is_no_further_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_run(tmp_path / "runs/b", 1, curves=totals(10), correct="1100")
    slower = totals(10) | {"total/wall_s": [(step, 99.0 * (step + 1)) for step in range(3)]}
    write_run(tmp_path / "runs/a", 1, curves=slower)  # a reproduction: the same but for its time, and not tested
    write_run(tmp_path / "runs/c", 1, curves=totals(10) | {"reward/mean": [(0, 0.9)]}, correct="1110")
    write_run(tmp_path / "runs/d", 2, curves=totals(10), correct="1000")
    main(["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert f"skipped: {tmp_path}/runs/a has the seed and the curves of {first}: a copy or a reproduction\n" in out
    assert "warning: several runs of GRPO have the seed 1: they are not independent\n" in out
    text = (tmp_path / "out/report.md").read_text()
    assert table(text, "Results")[0]["seeds"] == "2 (3 runs)"
    assert "Several runs of GRPO have the same seed" in text


def test_a_name_may_stand_before_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "mine", 3)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names("A=~/mine") == {"A": [3]}


# -- curves -----------------------------------------------------------------------------------------------------------


def test_a_band_is_mean_minimum_and_maximum_over_the_common_range(tmp_path: Path) -> None:
    # Per step, seed 1 generates 10 tokens and seed 2 generates 20.
    for seed, tokens in ((1, 10), (2, 20)):
        write_run(tmp_path / str(seed), seed, curves=totals(tokens) | {"val/accuracy": [(0, 0.0), (3, 0.3 * seed)]})
    runs = [read_run(tmp_path / seed) for seed in "12"]
    over_steps = band(runs, ACCURACY, STEPS)
    assert over_steps is not None
    assert over_steps.x.tolist() == [0, 3]
    assert np.stack([over_steps.low, over_steps.mean, over_steps.high])[:, 1] == pytest.approx([0.3, 0.45, 0.6])
    over_tokens = band(runs, ACCURACY, TOKENS)
    assert over_tokens is not None
    assert over_tokens.x[-1] == pytest.approx(30e-6), "as far as both seeds go"
    # There seed 1 has ended at 0.3, and seed 2 is half of the way to 0.6.
    assert (over_tokens.low[-1], over_tokens.high[-1]) == pytest.approx((0.3, 0.3), abs=1e-6)
    memory = band(runs[:1], MEMORY, STEPS)
    assert memory is not None
    assert memory.mean.tolist() == [2.5, 2.0, 3.0], "the highest of all peaks at each step"


def test_a_training_step_is_complete_when_its_curves_are_logged(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", curves=totals(10)))
    assert run.curves["reward/mean"].steps.tolist() == [1, 2, 3]
    assert run.curves["val/accuracy"].steps.tolist() == [0, 3]
    found = progress(run, TIME, np.array([0.0, 1.0, 1.5, 3.0]))
    assert found is not None
    assert found.tolist() == pytest.approx([0, 1, 1.5, 3])
    assert progress(read_run(write_run(tmp_path / "other")), TIME, np.array([1.0])) is None


def test_values_that_are_not_finite_are_dropped_from_a_curve(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    curves = {
        "reward/mean": [(0, nan), *((step, 0.5) for step in range(1, 80)), (80, inf)],
        "policy/kl": [(0, nan), (1, inf)],
    }
    run = read_run(write_run(tmp_path / "run", curves=curves))
    assert "policy/kl" not in run.curves
    assert run.last("reward/mean") == 0.5
    found = band([run], REWARD, STEPS)
    assert found is not None
    assert found.x.tolist() == list(range(2, 81))
    assert found.mean.tolist() == [0.5] * 79
    main(["compare", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    assert re.search(r"Not measured by any run: .*KL to the reference", (tmp_path / "out/report.md").read_text())


def test_smoothing_is_for_single_steps_only(tmp_path: Path) -> None:
    saw = [(step, float(step % 2)) for step in range(80)]
    run = read_run(write_run(tmp_path / "run", curves={"reward/mean": saw, "val/accuracy": saw}))
    smooth, plain = band([run], REWARD, STEPS), band([run], ACCURACY, STEPS)
    assert smooth is not None
    assert plain is not None
    assert smooth.mean[1:].tolist() == [0.5] * 79, "a running mean over a 40th of 80 steps"
    assert set(plain.mean.tolist()) == {0.0, 1.0}


# -- the report -------------------------------------------------------------------------------------------------------


def table(text: str, heading: str) -> list[dict[str, str]]:
    """Read a table of the Markdown report, with the header as keys."""
    section = text.split(f"## {heading}\n\n")[1].split("\n\n")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods with two seeds each, and an untested one that logged only its reward."""
    tmp_path = tmp_path_factory.mktemp("report")
    for seed in (1, 2):
        solved = {1: "1110110101", 2: "1111011111"}[seed]
        write_run(tmp_path / f"grpo/{seed}", seed, curves=totals(10 * seed), correct=solved)
        write_run(tmp_path / f"ppo/{seed}", seed, "PPOModule", curves=totals(20), correct="0101000101")
    write_run(tmp_path / "bare", 3, "SFTModule")
    out = tmp_path / "report"
    main(["compare", str(tmp_path / "grpo"), str(tmp_path / "ppo"), str(tmp_path / "bare"), "--out", str(out)])
    return out


def test_the_report_has_the_right_numbers(report: Path) -> None:
    text = (report / "report.md").read_text()
    grpo, ppo, bare = table(text, "Results")
    # 7 and 9 of 10. PPO's seeds agree: MS_problem = 2 * 2.4 / 9 = 0.533, 9 degrees: 0.4 -+ 2.262 sqrt(0.533 / 20).
    assert (grpo["method"], grpo["test accuracy"], grpo["seeds"]) == ("GRPO", "80.0 %", "2")
    assert (ppo["method"], ppo["test accuracy"], ppo["95 % interval"]) == ("PPO", "40.0 %", "3.1 to 76.9 %")
    # The largest memory; means of (30 + 60) / 2 and 60 tokens, times three for those trained on.
    assert (grpo["peak memory"], grpo["tokens generated"], grpo["tokens trained"]) == ("3.00 GiB", "45", "135")
    assert (ppo["wall time"], ppo["CPU time"], ppo["validation"]) == ("3.0 min", "4.5 min", "75.0 %")
    unmeasured = ("test accuracy", "peak memory", "wall time", "CPU time", "tokens generated", "tokens trained")
    assert {bare[column] for column in unmeasured} == {"not measured"}
    (difference,) = table(text, "Differences")
    assert (difference["difference"], difference["points"]) == ("PPO vs GRPO", "-40.0")
    assert difference["by seed"] == "-30.0, -50.0"
    # Of 10 problems, only GRPO solves 4 and only PPO 1 (seed 1), 5 and 0 (seed 2): 2 (1 + 5) / 32 and 2 / 32.
    assert difference["McNemar by seed"] == "1:4 p 0.375, 0:5 p 0.062"
    assert difference["p"] == difference["p, Holm"]
    runs = table(text, "Runs")
    assert [(row["seed"], row["accuracy"]) for row in runs][:2] == [("1", "70.0 %"), ("2", "90.0 %")]
    assert "| GRPO | `grpo fit --config 'my config.yaml'` |" in text
    assert {row["device"] for row in runs} >= {"cpu: a processor, 2 cores"}
    assert "Seeds: 1, 2, 3." in text
    assert "python 3.11, torch 2.13.0" in text
    assert f"--out {report}" in text
    assert "Not tested: SFT" in text


def test_the_cost_of_a_point_of_accuracy(tmp_path: Path) -> None:
    for seed, usd in ((1, 2.0), (2, 4.0)):
        write_run(tmp_path / f"grpo/{seed}", seed, curves=totals(1_000_000) | {"total/usd": [(0, 1.0), (2, usd)]})
    write_run(tmp_path / "once", 1, "PPOModule", curves={"total/usd": [(0, 1.0)], "val/accuracy": [(0, 0.5)]})
    write_run(tmp_path / "free", 1, "SFTModule", curves=totals(500_000))
    main(["compare", str(tmp_path / "grpo"), str(tmp_path / "once"), str(tmp_path / "free"), "--out", str(tmp_path)])
    grpo, free = table((tmp_path / "report.md").read_text(), "Cost")
    # 50 points for 2 and for 4 USD, 3 million tokens generated, and three times as many trained.
    assert list(grpo.values()) == ["GRPO", "+50.0", "3.00 USD", "+18.8", "+16.7", "+5.6"]
    assert list(free.values()) == ["SFT", "+50.0", "not measured", "not measured", "+33.3", "+11.1"]


def curves(out: Path) -> dict[str, Any]:
    """What the interactive charts of a report draw."""
    page = (out / "report.html").read_text()
    (text,) = re.findall(r'<script type="application/json" id="curves">(.*?)</script>', page, flags=re.S)
    return json.loads(text)  # type: ignore[no-any-return]


def test_the_page_is_self_contained_and_has_light_and_dark_themes(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#)", page)
    assert not re.search(r"url\(\s*[\"']?(?!#)|@import", page)
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == 1, "the accuracies; the curves are drawn by the script"
    assert "currentColor" in page
    for name in ("accuracy", "curves"):
        assert (report / f"{name}.svg").read_text().startswith("<?xml")
        assert (report / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"]({name}.svg)" in (report / "report.md").read_text()
    assert "80.0&nbsp;%" in page
    assert "band from the lowest to the highest" in page


def test_there_is_one_set_of_panels_with_a_switch(report: Path) -> None:
    data = curves(report)
    assert [axis["name"] for axis in data["axes"]] == ["steps", "tokens", "time"]
    assert "Over cost (USD): not measured (no run has `total/usd`)." in (report / "report.md").read_text()
    assert [method["name"] for method in data["methods"]] == ["GRPO", "PPO", "SFT"]
    assert len({(method["colour"], *method["dash"]) for method in data["methods"]}) == 3
    panels = {panel["title"]: panel["curves"] for panel in data["panels"]}
    # Seeds 1 and 2 generated 10 and 20 tokens per step, and took a minute for each; by hand.
    grpo, ppo, sft = panels["validation accuracy"]["steps"]
    assert grpo == {"x": [0, 3], "mean": [0.25, 0.75], "low": [0.25, 0.75], "high": [0.25, 0.75]}
    assert (ppo, sft) == (grpo, None)
    assert panels["validation accuracy"]["time"][0]["x"] == [0, 3]
    assert panels["validation accuracy"]["tokens"][1]["x"] == [0, 6e-5]
    assert [curve and curve["x"] for curve in panels["mean reward per step"]["steps"]] == [[1, 2, 3], [1, 2, 3], [1]]


def test_a_method_without_tokens_has_a_level_over_them(tmp_path: Path) -> None:
    write_run(tmp_path / "a", curves=totals(10))
    write_run(tmp_path / "b", 1, "SFTModule", curves={"val/accuracy": [(0, 0.25), (3, 0.5)], "policy/loss": [(2, 1.0)]})
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")])
    (panel,) = [panel["curves"] for panel in curves(tmp_path / "out")["panels"] if panel["share"]]
    assert panel["tokens"][1] == {"level": 0.5}
    assert panel["steps"][1] == {"x": [0, 3], "mean": [0.25, 0.5]}


def test_long_curves_are_thinned_with_their_ends(tmp_path: Path) -> None:
    write_run(tmp_path / "a", curves={"reward/mean": [(step, step / 1000) for step in range(1000)]})
    main(["compare", str(tmp_path / "a"), "--out", str(tmp_path / "out")])
    (panel,) = curves(tmp_path / "out")["panels"]
    x = panel["curves"]["steps"][0]["x"]
    assert (len(x), x[0], x[-1]) == (240, 1, 1000)


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        # 8 of 10 against none; Wilson's interval of 0.8 with n = 10 is 49.0 to 94.3 %.
        ("1111111100", "0000000000", "GRPO, beta 0 is the most accurate of 2 methods, with 80.0 % of 10 test problems "
         r"\(95 % interval 49.0 to 94.3 %\): \+80.0 points over the second, GRPO, beta 1, more than the noise"),
        ("1111000000", "0111100000", r"GRPO, beta 0 is .* \+0.0 points .* within the noise .* over problems\)"),
        ("0001", None, "GRPO, beta 0 solves 25.0 % of 4 test problems"),
    ],
)  # fmt: skip
def test_a_sentence_before_the_tables_sums_up(first: str, second: str | None, sentence: str, tmp_path: Path) -> None:
    write_run(tmp_path / "a", correct=first, beta=0)
    write_run(tmp_path / "b", correct=second, beta=1)
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")])
    text = (tmp_path / "out/report.md").read_text()
    assert re.match(sentence, text.split("\n\n")[1])
    assert text.index("## Training dynamics") < text.index("## Runs")
    if second:
        assert text.index("## Training dynamics") < text.index("## Differences"), "curves before the many differences"


def test_the_sentence_without_tests(tmp_path: Path) -> None:
    write_run(tmp_path / "none/a")
    for seed, accuracy in ((1, 0.4), (2, 0.6)):
        write_run(tmp_path / f"two/{seed}", seed, curves={"val/accuracy": [(1, accuracy)], "reward/mean": [(0, 1)]})
    write_run(tmp_path / "two/low", 1, "PPOModule", curves={"val/accuracy": [(1, 0.3)], "reward/mean": [(0, 1)]})
    sentences = []
    for name in ("none", "two"):
        main(["compare", str(tmp_path / name), "--out", str(tmp_path / "out")])
        sentences.append((tmp_path / "out/report.md").read_text().split("\n\n")[1])
    assert sentences[0].startswith("No run was tested or validated")
    assert (
        sentences[1] == "GRPO ends with a validation accuracy of 50.0 %, the highest of 2 methods; no run was tested."
    )


@pytest.mark.parametrize("known_from", ["rollouts", "test"])
def test_rewards_that_tell_nothing_correct_replace_accuracy(known_from: str, tmp_path: Path) -> None:
    alone = Verdict(False, False, score=0.3, reward_alone=True)
    for name, reward in (("a", 0.25), ("b", 0.5)):
        logged = {"val/reward": [(0, 0.125), (1, reward)], "total/usd": [(0, 1.0), (1, 2.0)], "reward/mean": [(0, 0.1)]}
        logged["val/accuracy"] = [(0, 0.0), (1, 0.0)]
        run = write_run(tmp_path / name, curves=logged, correct="00" if known_from == "test" else None, beta=reward)
        (attempt,) = experience([(0.3, FinishReason.STOP)], group_size=1).attempts
        if known_from == "test":
            found = problem_result(attempt.prompt, Outcome(alone, reward, {}, 1, 1, False))
            (run / "test/first/test_results.jsonl").write_text(json.dumps(found) + "\n")
        else:
            (run / "rollouts/001-from-step-000000").mkdir(parents=True)
            file = run / "rollouts/001-from-step-000000/rank0-step-000000.jsonl"
            file.write_text(
                json.dumps({"step": 0, "id": "train/0/0/0", **record(replace(attempt, verdict=alone))}) + "\n"
            )
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")])
    text = (tmp_path / "out/report.md").read_text()
    assert text.split("\n\n")[1] == (
        "The rewards of GRPO, beta 0.25 and GRPO, beta 0.5 do not tell right from wrong, so the tables show mean "
        "rewards instead of accuracy. In the last validation: GRPO, beta 0.25 0.250; GRPO, beta 0.5 0.500."
    )
    tested = ["0.250", "0.500"] if known_from == "test" else ["not measured"] * 2
    results, runs, spent = (table(text, heading) for heading in ("Results", "Runs", "Cost"))
    assert [row["test reward"] for row in results] == tested
    assert [row["validation"] for row in results] == ["0.250", "0.500"]
    assert [row["reward"] for row in runs] == tested
    # By hand: 0.125 and 0.375 for 2 USD.
    gained = [(row["reward gained"], row["reward per USD"]) for row in spent]
    assert gained == [("+0.125", "+0.062"), ("+0.375", "+0.188")]
    assert "Differences" not in text


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_switch_in_a_browser(report: Path) -> None:
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    for axis, words in (("steps", "training steps"), ("time", "wall time")):
        address = (report / "report.html").as_uri() + f"#over={axis}"
        page = subprocess.run([*command, address], check=True, capture_output=True, text=True, timeout=120).stdout
        assert page.count('class="chart"') == len(curves(report)["panels"]) == page.count("<canvas")
        assert re.findall(r'aria-pressed="true">over ([a-z ]+[a-z])', page) == [words]


def test_two_seeds_have_a_band_in_the_figure_and_one_seed_has_none(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path / f"runs/{seed}", seed, curves={"reward/mean": [(0, 0.1 * seed), (1, 0.4 * seed)]})
    for name, runs in (("two", [tmp_path / "runs"]), ("one", [tmp_path / "runs/1"])):
        main(["compare", *map(str, runs), "--out", str(tmp_path / name)])
    assert 'id="FillBetweenPolyCollection_1"' in (tmp_path / "two/curves.svg").read_text()
    assert "PolyCollection" not in (tmp_path / "one/curves.svg").read_text()
    (two,), (one,) = (curves(tmp_path / name)["panels"][0]["curves"]["steps"] for name in ("two", "one"))
    assert two["low"] == [0.1, 0.4]
    assert "low" not in one
    text = (tmp_path / "one/report.md").read_text()
    assert "no run has `total/rollout_tokens`" in text
    assert "Not measured by any run: validation accuracy, KL" in text
    assert "## Differences" not in text


def test_title_and_resamples(tmp_path: Path) -> None:
    for name, correct in (("a", "1110110101" * 3), ("b", "0110110001" * 3)):
        write_run(tmp_path / name, correct=correct, beta=name)
    texts = []
    for resamples in ("200", "5000"):
        out = tmp_path / resamples
        options = ["--title", "Mine & <yours>", "--resamples", resamples, "--out", str(out)]
        main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), *options])
        texts.append((out / "report.md").read_text())
        assert "<h1>Mine &amp; &lt;yours&gt;</h1>" in (out / "report.html").read_text()
        assert texts[-1].startswith("# Mine & &lt;yours>\n")
    (few,), (many,) = (table(text, "Differences") for text in texts)
    assert few["p"] != many["p"]
    assert few["95 %, other seeds and problems"] == "not measured", "one seed does not generalise to others"
    assert "(5,000 resamples)" in texts[1]


def test_without_a_common_seed_runs_are_paired_in_order_and_the_report_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 1, correct="10", beta=0)
    write_run(tmp_path / "b", 2, correct="11", beta=1)
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")])
    assert (
        "No common seed, so paired in order: GRPO, beta 0 and GRPO, beta 1." in (tmp_path / "out/report.md").read_text()
    )


def test_runs_that_cannot_be_paired_are_named(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_run(tmp_path / f"a/{seed}", seed, correct="10", beta=0)
    for seed in (2, 4):
        write_run(tmp_path / f"b/{seed}", seed, correct="11", beta=1)
    main(["compare", f"A={tmp_path / 'a'}", f"B={tmp_path / 'b'}", "--out", str(tmp_path / "out")])
    assert (
        "Omitted, for lack of a run to pair with: A seed 1, A seed 3, B seed 4 (B vs A)."
        in (tmp_path / "out/report.md").read_text()
    )


def test_any_text_can_be_a_name(tmp_path: Path) -> None:
    odd = [r"a$\frac$b", "_hidden", "<b>|&amp;"]
    for number, name in enumerate(odd):
        write_run(tmp_path / str(number), curves=totals(10 + number), correct="10")
        odd[number] = f"{name}={tmp_path / str(number)}"
    main(["compare", *odd, "--title", "two\nlines", "--out", str(tmp_path / "out")])
    picture = (tmp_path / "out/curves.svg").read_text()
    for name in (r"a$\frac$b", "_hidden", "&lt;b&gt;|&amp;amp;"):
        assert f">{name}</text>" in picture
    assert [method["name"] for method in curves(tmp_path / "out")["methods"]] == [r"a$\frac$b", "_hidden", "<b>|&amp;"]
    assert "<b>|" not in (tmp_path / "out/report.html").read_text()
    text = (tmp_path / "out/report.md").read_text()
    assert text.startswith("# two lines\n")
    assert [row["method"] for row in table(text, "Results")] == [r"a$\\frac$b", "_hidden", r"&lt;b>\|&amp;amp;"]
    assert "<h1>two\nlines</h1>" in (tmp_path / "out/report.html").read_text()


# -- tests of a policy ------------------------------------------------------------------------------------------------


def test_the_newest_test_counts_with_the_files_of_all_ranks(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", correct="0000")
    write_test(run / "test" / "second", "1x", checkpoint="best-step5.ckpt")
    lines = [{"problem": "p0", "correct": False}, {"problem": "p7", "correct": True}]
    (run / "test/second/test_results.rank1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_run(run).test
    assert found is not None
    assert found.correct == {"p0": 1.0, "p1": 0.0, "p0#1": 0.0, "p7": 1.0}, "a problem asked twice is two"
    assert found.errors == 1
    assert found.checkpoint == "best-step5.ckpt"
    main(["compare", str(run), "--out", str(tmp_path / "out")])
    text = (tmp_path / "out/report.md").read_text()
    assert "A verifier failed on 1 completion, which counts as not solved." in text
    assert "best-step5.ckpt" in text


def test_a_test_counts_when_it_has_ended_and_by_the_time_in_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    tests = {"20260102-000000-aa": "1111", "20260101-000000-bb": "0000", "20260103-000000-cc": "11"}
    for name, correct in tests.items():  # the second is written last, as a copy may be
        write_test(run / "test" / name, correct)
    (run / "test/20260103-000000-cc/test_unfinished.txt").touch()
    found = read_run(run).test
    assert found is not None
    assert list(found.correct.values()) == [1, 1, 1, 1]
    for name in list(tests)[:2]:
        shutil.rmtree(run / "test" / name)
    assert read_run(run).test is None
    find_methods([str(run)])
    assert f"not tested: the test of {run} was interrupted, or has not ended: run grpo test" in capsys.readouterr().out


# -- user errors ------------------------------------------------------------------------------------------------------


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", correct="1010")
    other = write_run(tmp_path / "other", correct="101010", beta=1)
    silent = write_run(tmp_path / "silent", curves={})
    (tmp_path / "empty").mkdir()
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    broken = write_run(tmp_path / "broken", correct="1")
    (broken / "test/first/test_results.jsonl").write_text('{"problem": "p1"}\n')
    damaged = {text: write_run(tmp_path / f"damaged{len(text)}") for text in ("", "[1]")}
    for text, folder in damaged.items():
        (folder / "environment.json").write_text(text)
    (tmp_path / "taken/report.md").mkdir(parents=True)
    warm = write_run(tmp_path / "cut", policy={"path": str(tmp_path / "cut/warm_start/policy")})
    (warm / "warm_start").mkdir()
    (warm / "warm_start/config.yaml").write_text("model: [")
    cases = {
        "environment.json is not valid JSON": [damaged[""]],
        "warm_start/config.yaml cannot be read as a config": [warm],
        "environment.json must hold a JSON object, not [1]": [damaged["[1]"]],
        f"--out: cannot write {tmp_path}/taken/report.md: Is a directory": [run, "--out", tmp_path / "taken"],
        "name at least one run directory": [],
        "none does not exist": [tmp_path / "none"],
        "empty is not a run and contains none": [tmp_path / "empty"],
        "trainer.logger does not include a TensorBoardLogger": [silent],
        "stopped is not a run and contains none": [f"x={stopped}", run],
        "is not a folder": [run / "config.yaml"],
        "is given twice": [run, tmp_path / "ru*"],
        "write NAME=RUN_DIR": [f"={run}"],
        "was tested on 4 problems and": [run, other],
        "line 1 is not a test result": [broken],
        "--resamples: must be at least 100, not 5": [run, "--resamples", "5"],
    }
    for text, arguments in cases.items():
        with pytest.raises(SystemExit, match="2"):
            main(["compare", "--out", str(tmp_path / "out"), *map(str, arguments)])
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
        assert line.startswith("grpo: error: ")
        assert text in line


@pytest.mark.parametrize("shell", [False, True], ids=["pattern", "expanded by the shell"])
def test_a_pattern_skips_what_is_not_a_run_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shell: bool
) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "whole", seed=7, correct="10")
    (runs / "failed").mkdir()
    write_run(runs / "early", curves={})
    write_run(runs / "interrupted/warm_start", module="SFTModule")
    (runs / "notes.txt").write_text("mine")
    arguments = [str(path) for path in sorted(runs.iterdir())] if shell else [str(runs / "*")]
    main(["compare", *arguments, "--out", str(tmp_path / "out")])
    out = capsys.readouterr().out
    for name in (
        "failed is not a run",
        "early has no TensorBoard events",
        "interrupted is not a run",
        "notes.txt is not a fold",
    ):
        assert f"skipped: {runs}/{name}" in out
    assert "1 run of 1 method:" in out
    assert names(*arguments) == {"GRPO": [7]}


def test_without_matplotlib_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    from grpo_lightning.commands.compare.command import main as compare

    with pytest.raises(ConfigError, match=r"pip install 'grpo-lightning\[report\]'"):
        compare([str(write_run(tmp_path / "run"))])


def test_compare_loads_no_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", correct="10")
    code = (
        "import sys; from grpo_lightning.__main__ import main\n"
        f"main(['compare', {str(run)!r}, '--out', {str(tmp_path / 'out')!r}])\n"
        "heavy = {'torch', 'lightning', 'transformers', 'jsonargparse'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- from training to the report --------------------------------------------------------------------------------------


def test_runs_that_are_trained_and_tested_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    sizes = {
        "trainer.max_steps": 2, "trainer.val_check_interval": 1, "trainer.limit_val_batches": 1,
        "trainer.enable_progress_bar": "false", "data.prompts_per_step": 2, "data.val_batch_size": 4,
        "data.task.init_args.train_size": 40, "data.task.init_args.test_size": 6, "data.sampling.max_new_tokens": 8,
        "trainer.callbacks": "[VRAMProfiler]",
    }  # fmt: skip
    options = [text for key, value in sizes.items() for text in (f"--{key}", str(value))]
    for seed in ("1", "2"):
        run = tmp_path / "sft" / seed
        where = ["--run_dir", str(run), "--seed_everything", seed, "--summary.validate_first", "true"]
        main(["fit", "--config", "configs/quickstart_sft.yaml", *where, *options])
        main(["test", "--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints/last.ckpt")])
        # The files of the test are inside the run, separate from its curves and its config.
        (tested,) = (run / "test").iterdir()
        results = [json.loads(line) for line in (tested / "test_results.jsonl").read_text().splitlines()]
        assert len({result["problem"] for result in results}) == 6
        assert not (tested / "test_unfinished.txt").exists()
        assert {"correct", "format_valid", "reward", "tokens", "finish_reason", "error"} <= results[0].keys()
        assert len(list(run.glob("events.out*"))) == 1
        assert not (run / "config-2.yaml").exists()
        assert yaml.safe_load((tested / "config.yaml").read_text())["ckpt_path"].endswith("last.ckpt")
        made_with = json.loads((run / "environment.json").read_text())
        assert made_with["device"].startswith("cpu: ")
        assert {"torch", "lightning", "grpo-lightning", "python"} <= made_with["versions"].keys()
    first, second = (read_run(tmp_path / "sft" / seed) for seed in ("1", "2"))
    # Validated before the first step, and after each of the two: the steps of the training curves are 1 and 2.
    assert first.curves["val/accuracy"].steps.tolist() == [0, 1, 2]
    assert first.curves["memory/validation_peak_gib"].steps.tolist() == [0, 1, 2]
    assert first.curves["policy/loss"].steps.tolist() == [1, 2]
    assert max(curve.steps[-1] for curve in first.curves.values()) == 2, "as the report counts them"
    assert first.test is not None
    assert second.test is not None
    assert first.test.correct.keys() == second.test.correct.keys(), "the same problems have the same keys"
    main(["compare", str(tmp_path / "sft"), "--out", str(tmp_path / "out")])
    (row,) = table((tmp_path / "out/report.md").read_text(), "Results")
    assert (row["method"], row["seeds"]) == ("SFT", "2")
    assert row["validation"].endswith("%")
