"""Every example runs as its docstring says, and does what it says."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter, defaultdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples import model_family, own_command
from examples.own_advantage import Neighbours
from examples.own_algorithm import Distillation
from examples.own_environment import HigherOrLower
from examples.own_task import DigitSums
from examples.own_verifier import Nearness
from grpo_lightning.__main__ import main
from grpo_lightning.advantages import GroupStd
from grpo_lightning.curves import CURVES, tensorboard_layout
from grpo_lightning.environments import Reply
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import PolicyConfig
from grpo_lightning.tasks.base import SPLITS
from grpo_lightning.types import FinishReason, Prompt, Sample
from grpo_lightning.verifiers.base import judge, rewarded
from tests.tiny import save_tiny_model
from tests.toy import LetterVerifier, Watch, adam, fit

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "examples").glob("*.py"))
FEW = {
    "trainer.max_steps": 6, "trainer.val_check_interval": 2, "trainer.limit_val_batches": 1,
    "trainer.enable_progress_bar": "false", "data.val_batch_size": 4, "data.prompts_per_step": 4, "data.group_size": 4,
    "data.sampling.max_new_tokens": 16, "warm_start": "null", "model.init_args.policy.init": "random",
}  # fmt: skip
"""Options for a few small steps, from random weights."""
# Without the warm start nothing is solved; the share of repeated tokens differs in every group.
REPETITION = ("--model.init_args.verifiers", "[{class_path: RepetitionPenalty, init_args: {ngram_size: 1}}]")


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configs name their files from the root of the repository."""
    monkeypatch.chdir(ROOT)


def commands(example: str, program: str) -> list[list[str]]:
    """The arguments of the commands in an example's docstring that begin with ``program``."""
    text = ast.get_docstring(ast.parse((ROOT / f"examples/{example}.py").read_text())) or ""
    return [shlex.split(line.removeprefix(program)) for line in text.splitlines() if line.startswith(program)]


def train(run: Path, arguments: list[str], *options: str) -> Path:
    """Run a ``grpo fit`` of a docstring for a few optimizer steps, and give its run directory."""
    # The rows are few, because setting up encodes them all; the examples' own task has no such option.
    size = {} if "examples/own_task.yaml" in arguments else {"data.task.init_args.train_size": 200}
    few = [text for key, value in (FEW | size).items() for text in (f"--{key}", str(value))]
    main(["fit", *arguments, *few, *options, "--run_dir", str(run)])
    return run


def trained(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


def weights(folder: Path, example: str, *options: str) -> dict[str, torch.Tensor]:
    """Train an example for a few optimizer steps, and give its weights."""
    (arguments,) = commands(example, "grpo fit")
    return trained(train(folder / example, arguments, *REPETITION, *options))["state_dict"]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def saved_config(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())


def groups_of(run: Path) -> dict[int, list[list[dict[str, Any]]]]:
    """What the run's own log holds of its rollouts: the records of each group, by step."""
    steps: dict[int, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted((run / "rollouts").rglob("*.jsonl")):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            steps[record["step"]][record["group"]].append(record)
    return {step: list(groups.values()) for step, groups in steps.items()}


def scalars(run: Path, name: str) -> list[float]:
    return [event.value for event in EventAccumulator(str(run)).Reload().Scalars(name)]


# -- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_is_short(file: Path) -> None:
    tree = ast.parse(file.read_text())
    docstrings = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    lines = [text for number, text in enumerate(file.read_text().splitlines(), 1) if number not in docstrings]
    assert len([text for text in lines if text.strip()]) <= 40


def test_every_example_is_listed_and_shown_to_contributors() -> None:
    rows = re.findall(r"^\| (.*?) \|", (ROOT / "examples/README.md").read_text(), re.MULTILINE)[1:]
    listed = [name for row in rows for name in re.findall(r"\]\((.*?)\)", row)]
    assert Counter(listed) == Counter(f.name for f in (ROOT / "examples").iterdir() if f.suffix in (".py", ".yaml"))
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert [file.name for file in FILES if f"examples/{file.name}" not in contributing] == []


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_config_says_how_it_is_run_as_its_example_does(file: Path) -> None:
    comment = [line.lstrip("# ") for line in file.read_text().splitlines() if line.startswith("#")]
    said = [shlex.split(line[line.index("grpo fit") :])[2:] for line in comment if "grpo fit" in line]
    assert said == commands(file.stem, "grpo fit")


# -- a verifier -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "reward", "correct", "format_valid"),
    [  # by hand, with the answer 14 and the scale 5
        ("12+7=19\n#### 14", 1.0, True, True),
        ("#### 14.0\n", 1.0, True, True),
        ("#### 19", 0.5, False, True),
        ("#### -1", 0.25, False, True),
        ("#### 14\n#### 24", 1 / 3, False, True),
        ("#### 14 or 15", 0.0, False, False),
        ("#### 14\nor so", 0.0, False, False),
        ("14", 0.0, False, False),
        ("#### " + "9" * 400, 0.0, False, True),
        ("", 0.0, False, False),
    ],
)
def test_a_verifier_of_ones_own_rewards_near_misses(
    completion: str, reward: float, correct: bool, format_valid: bool
) -> None:
    ((verdict, found),) = rewarded(Nearness(scale=5.0), [Sample("", completion, "14")])
    assert (found, verdict.correct, verdict.format_valid) == (pytest.approx(reward), correct, format_valid)
    assert "14" not in verdict.feedback
    assert bool(verdict.feedback) is not correct


def test_a_verifier_of_ones_own_that_cannot_judge_gives_an_error_and_no_reward() -> None:
    ((verdict, reward),) = rewarded(Nearness(), [Sample("", "#### 14", "fourteen")])
    assert verdict.error is not None
    assert reward != reward  # NaN
    with pytest.raises(ValueError, match="fourteen"):
        Nearness().require(Prompt([], "fourteen"))
    with pytest.raises(ConfigError, match="Nearness: scale must be positive, but is 0"):
        Nearness(scale=0)
    (cut,) = judge(Nearness(), [Sample("", "#### 14", "14", finish_reason=FinishReason.LENGTH)])
    assert not cut.correct


def test_a_verifier_of_ones_own_is_checked_tried_and_trained_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (check,) = commands("own_verifier", "grpo check")
    main(["check", *check])
    assert "every gold answer that was checked is correct to Nearness" in capsys.readouterr().out
    samples = tmp_path / "samples.jsonl"
    samples.write_text(json.dumps({"prompt": "2+2?", "completion": "#### 9", "answer": "4"}))
    main(["verify", *check, "--samples", str(samples)])
    assert "0.5" in capsys.readouterr().out  # at the config's scale of 5; 0.67 at the default
    (arguments,) = commands("own_verifier", "grpo fit")
    run = train(tmp_path / "run", arguments)
    (verifier,) = saved_config(run)["model"]["init_args"]["verifiers"]
    assert verifier["init_args"]["scale"] == 5.0
    records = [record for groups in groups_of(run).values() for group in groups for record in group]
    assert {"End with a line '#### <number>'."} == {record["feedback"] for record in records}


# -- a task -----------------------------------------------------------------------------------------------------------


def test_a_task_of_ones_own_deals_out_its_prompts() -> None:
    task = DigitSums(largest=200, system_prompt="Add.")
    splits = {split: [prompt.messages[-1]["content"] for prompt in task.prompts(split)] for split in SPLITS}
    everything = [text for texts in splits.values() for text in texts]
    assert len(everything) == len(set(everything)) == 201
    assert {len(texts) for texts in splits.values()} == {29, 143}  # by hand: 201 = 28 * 7 + 5
    by_number = {prompt.messages[-1]["content"]: prompt for split in SPLITS for prompt in task.prompts(split)}
    prompt = by_number["What is the digit sum of 197?"]
    assert (prompt.answer, prompt.solution) == ("17", "1+9+7=17\n#### 17")
    assert prompt.messages[0] == {"role": "system", "content": "Add."}
    with pytest.raises(ConfigError, match=r"data.task.init_args.largest: must be at least 1, not 0"):
        DigitSums(largest=0)


def test_a_task_of_ones_own_is_checked_and_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (check,) = commands("own_task", "grpo check")
    main(["check", *check])
    assert "DigitSums: every gold answer that was checked is correct to MathVerifier" in capsys.readouterr().out
    (arguments,) = commands("own_task", "grpo fit")
    run = train(tmp_path / "run", arguments, "--trainer.max_steps", "30", "--trainer.limit_val_batches", "0")
    assert saved_config(run)["data"]["task"]["init_args"]["largest"] == 999
    losses = scalars(run, "policy/loss")
    assert losses[-1] < 0.7 * losses[0]


# -- an advantage -----------------------------------------------------------------------------------------------------


def test_an_environment_of_ones_own_replies(tmp_path: Path) -> None:
    game = HigherOrLower(discount=0.8)
    game.reset(Prompt([], answer="14"))
    steps = [game.step(Reply(text)) for text in ("12+7=19\n#### 19", "#### 3", "14", "#### 14")]
    said = [step.messages[0]["content"] for step in steps[:-1]]
    assert said == ["Lower.", "Higher.", "Write #### and a number."]
    assert (steps[-1].done, steps[-1].reward) == (True, pytest.approx(0.8**3))
    (arguments,) = commands("own_environment", "grpo fit")
    # Random weights seldom end a turn: here a common letter does.
    run = train(tmp_path, arguments, "--trainer.max_steps", "1", "--data.sampling.stop", "[e]")
    turns = [record for groups in groups_of(run)[0] for record in groups]
    assert {record["attempt"] for record in turns} == {1, 2, 3}
    assert {record["prompt"][2]["content"] for record in turns if record["attempt"] > 1} == {said[-1]}


def test_an_advantage_of_ones_own_gives_each_completion_that_of_its_neighbour(tmp_path: Path) -> None:
    rewards_BG = torch.tensor([[1.0, 0.0, 0.5, 0.5], [1.0, torch.nan, 0.0, 0.0]])
    plain_BG, own_BG = GroupStd()(rewards_BG), Neighbours()(rewards_BG)
    assert own_BG[0].tolist() == plain_BG[0, [3, 0, 1, 2]].tolist()
    assert own_BG[1].tolist() == [plain_BG[1, 3], 0, 0, plain_BG[1, 2]]
    (arguments,) = commands("own_advantage", "grpo fit")
    run = train(tmp_path / "run", arguments, "--trainer.max_steps", "1")
    assert saved_config(run)["model"]["init_args"]["advantage"]["class_path"] == "examples.own_advantage.Neighbours"


# -- an objective -----------------------------------------------------------------------------------------------------


def test_an_objective_of_ones_own_trains_from_yaml(tmp_path: Path) -> None:
    own = weights(tmp_path / "own", "own_objective")
    assert equal(own, weights(tmp_path / "again", "own_objective"))
    other = weights(tmp_path / "tau", "own_objective", "--model.init_args.objective.init_args.tau", "9.0")
    assert not equal(own, other)
    clip = weights(tmp_path / "clip", "own_objective", "--model.init_args.objective", "clip")
    assert not equal(own, clip)
    saved = saved_config(tmp_path / "own/own_objective")["model"]["init_args"]["objective"]
    assert saved == {"class_path": "examples.own_objective.SoftGate", "init_args": {"tau": 2.0}}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--model.init_args.epsilon", "0.1"],
            "model.epsilon: epsilon belongs to Clip, but model.objective is a class",
        ),
        (["--model.init_args.objective.init_args.tau", "0"], "SoftGate: tau must be positive, but is 0.0"),
        (["--model.init_args.objective.init_args.tao", "1"], "model.objective.tao: there is no such key"),
        (
            ["--model.init_args.objective", "Softgate"],
            "model.objective: must be one of clip, cispo, or .*, not Softgate",
        ),
    ],
)
def test_mistakes_with_an_objective_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as error:
        weights(tmp_path, "own_objective", *options)
    assert error.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("grpo: error")]
    assert re.search(sentence, line), line


def test_the_classes_are_known_by_their_short_names(capsys: pytest.CaptureFixture[str]) -> None:
    for key, name, option in (("objective", "Clip", "epsilon_high"), ("advantage", "GroupStd", "eps")):
        with pytest.raises(SystemExit, match="0"):
            main(["fit", "--config", "configs/quickstart.yaml", f"--model.{key}.help", name])
        assert f"--model.{key}.{option}" in capsys.readouterr().out


# -- an engine --------------------------------------------------------------------------------------------------------


def test_an_engine_of_ones_own_counts_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Without validation, and without the preflight, which samples too.
    alone = ("--trainer.limit_val_batches", "0", "--summary.validate_first", "false", "--health_check.prompts", "0")
    (arguments,) = commands("own_engine", "grpo fit")
    run = train(tmp_path / "own", arguments, *REPETITION, *alone)
    engine = saved_config(run)["data"]["engine"]
    assert engine["class_path"] == "examples.own_engine.CountingEngine"
    assert engine["init_args"]["inner"]["class_path"].endswith("in_process.InProcessEngine")
    tokens = trained(run)["totals"]["rollout_tokens"]
    assert 6 * 4 * 4 <= tokens <= 6 * 4 * 4 * 16
    line = f"{6 * 4 * 4} completions, {tokens} tokens, 6 versions of the weights"
    assert line in capsys.readouterr().out.splitlines()
    plain = train(tmp_path / "plain", ["--config", "configs/quickstart.yaml"], *REPETITION, *alone)
    assert equal(trained(run)["state_dict"], trained(plain)["state_dict"])
    assert "completions," not in capsys.readouterr().out


# -- a callback -------------------------------------------------------------------------------------------------------


def test_a_callback_of_ones_own_writes_the_prompts_that_nothing_solved(tmp_path: Path) -> None:
    (arguments,) = commands("own_callback", "grpo fit")
    # Right or wrong by the length of the completion: of pairs, about one in four is wrong twice.
    parity = ("--model.init_args.verifiers", "[{class_path: tests.rollout.test_refinement.Parity}]")
    run = train(tmp_path / "run", arguments, *parity, "--data.group_size", "2", "--data.prompts_per_step", "8")
    written = [json.loads(line) for line in (run / "unsolved-rank0.jsonl").read_text().splitlines()]
    expected, solved = [], 0
    for step, groups in groups_of(run).items():
        share = sum(record["correct"] for group in groups for record in group) / 16
        for group in groups:
            if any(record["correct"] for record in group):
                solved += 1
            else:
                expected.append((step, group[0]["prompt"][-1]["content"], pytest.approx(share)))
    assert expected
    assert solved
    assert [tuple(record.values()) for record in written] == expected


# -- a curve ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_own_curves")
def test_a_curve_of_ones_own_is_logged_charted_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sys.modules.pop("examples.own_curve", None)  # its import declares the curve
    assert not any(
        re.search(regex, "completion/distinct") for regex in tensorboard_layout(CURVES)["Completions"].values()
    )
    (arguments,) = commands("own_curve", "grpo fit")
    # Four words are soon drawn twice.
    short = ("--data.sampling.max_new_tokens", "1", "--data.group_size", "8", "--data.sampling.temperature", "0.5")
    run = train(tmp_path / "run", arguments, *REPETITION, *short, "--trainer.enable_progress_bar", "true")
    expected = []
    for groups in groups_of(run).values():
        texts = [[record["completion"] for record in group] for group in groups]
        expected.append(sum(len(set(group)) for group in texts) / sum(map(len, texts)))
    assert min(expected) < 1
    assert scalars(run, "completion/distinct") == pytest.approx(expected)
    assert f"distinct={expected[-1]:.3f}" in capsys.readouterr().err
    matching = [
        title
        for title, regex in tensorboard_layout(CURVES)["Completions"].items()
        if re.match(regex, "completion/distinct")
    ]
    assert matching == ["Truncated"]
    *_, layout = EventAccumulator(str(run)).Reload().Tensors("custom_scalars__config__")
    assert b"completion/distinct" in layout.tensor_proto.string_val[0]


# -- an algorithm -----------------------------------------------------------------------------------------------------


def test_an_algorithm_of_ones_own_distills_a_teacher(model_path: str, tmp_path: Path) -> None:
    teacher = save_tiny_model(tmp_path / "teacher", "llama", seed=1)
    module = Distillation(
        PolicyConfig(path=model_path), [LetterVerifier()], teacher=teacher, beta=0.0, aggregation="dapo", optimizer=adam
    )
    watch = Watch()
    fit(tmp_path, module, 50, callbacks=[watch])
    kls = [logged["policy/kl"] for logged in watch.logged]
    assert sum(kls[-5:]) < 0.85 * sum(kls[:5])  # 0.51 and 0.69 on one CPU; others round, and so sample, differently
    assert not any("teacher" in name for name, _ in module.named_parameters())


def test_an_algorithm_of_ones_own_runs_from_yaml(tmp_path: Path) -> None:
    teacher, student = commands("own_algorithm", "grpo fit")
    assert teacher[-2:] == ["--run_dir", "runs/teacher"]
    policy = train(tmp_path / "teacher", teacher[:-2], "--trainer.max_steps", "30") / "policy"
    assert "runs/teacher/policy" in (ROOT / student[1]).read_text()
    run = train(tmp_path / "student", student, "--model.init_args.teacher", str(policy))
    kls = scalars(run, "policy/kl")
    assert kls[-1] < kls[0]
    assert not any("teacher" in name for name in trained(run)["state_dict"])


# -- a model family ---------------------------------------------------------------------------------------------------


def test_a_model_family_is_planned_with_the_shortcuts_that_it_then_uses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ((*build, example),) = commands("model_family", "python -m examples.model_family")
    ((*plan, planned),) = commands("model_family", "grpo plan")
    assert planned == example
    model_family.main([*build, str(tmp_path)])
    loaded = capsys.readouterr().out.splitlines()
    with pytest.raises(SystemExit, match="0"):
        main(["plan", *plan, str(tmp_path), "--fast", "--data.group_size", "2", "--data.prompts_per_step", "2"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("shortcut ")]
    assert [line.split(", if its trial")[0] for line in lines] == loaded
    assert lines != loaded


@pytest.mark.parametrize("family", ["olmo2", "phi3"])
def test_a_model_family_trains_alike_with_its_shortcuts_and_without(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_family.main([family, str(tmp_path / "model")])
    lines = capsys.readouterr().out.splitlines()
    used = [line.split()[1].rstrip(":") for line in lines if line.endswith(": used")]
    assert {"shared_prompts", "recomputed_activations"} <= set(used)
    asked_for, refused, *others = [line for line in lines if not line.endswith(": used")]
    assert asked_for.startswith("shortcut compiled_layers: not used: set model.policy.compile")
    assert all("graphed_decoding" in line for line in others), "it needs a GPU, and direct_decoding"
    assert re.match(r"shortcut direct_decoding: not used: \w+ForCausalLM is built differently", refused)
    ((*arguments, _),) = commands("model_family", "grpo fit")
    arguments.append(str(tmp_path / "model"))
    sgd = ("--model.init_args.optimizer", "{class_path: torch.optim.SGD, init_args: {lr: 0.1}}")
    options = (*REPETITION, *sgd, "--model.init_args.policy.init", "pretrained", "--trainer.max_steps", "2")
    without = ("--model.init_args.policy.without", f"[{', '.join(used)}]")
    short = trained(train(tmp_path / "short", arguments, *options))["state_dict"]
    plain = trained(train(tmp_path / "plain", arguments, *options, *without))["state_dict"]
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    moves = {name: tensor - before[name.removeprefix("policy.model.")] for name, tensor in plain.items()}
    assert max(float(move.abs().max()) for move in moves.values()) > 1e-4
    for name, tensor in plain.items():
        torch.testing.assert_close(short[name], tensor, rtol=1e-4, atol=1e-6)


# -- a command --------------------------------------------------------------------------------------------------------


def test_a_command_of_ones_own_finds_the_longest_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    (arguments,) = commands("own_command", "python -m examples.own_command")
    own_command.main([*arguments, "--data.task.init_args.train_size", "50"])
    lines = capsys.readouterr().out.splitlines()
    printed = [(int(line.split(" ", 1)[0]), line.split(" ", 1)[1]) for line in lines]
    task = import_module("grpo_lightning.tasks").Arithmetic(
        prompt_template="{prompt}", max_value=60, max_steps=5, train_size=50
    )
    tokenizer = AutoTokenizer.from_pretrained("configs/tiny_decoder")
    lengths = {
        prompt.messages[-1]["content"]: len(
            tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True, return_dict=False)
        )
        for prompt in task.prompts("train")
    }
    assert [count for count, _ in printed] == sorted(lengths.values(), reverse=True)[:5]
    assert all(lengths[text] == count for count, text in printed)
    with pytest.raises(ConfigError, match="max_stepz"):
        own_command.main([*arguments, "--data.task.init_args.max_stepz", "5"])


# -- another launcher -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.ray
def test_ray_starts_the_processes_of_a_run(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed, which the project does not need")
    size = {"data.task.init_args.train_size": 200, "trainer.default_root_dir": tmp_path, "trainer.max_steps": 2}
    options = [text for key, value in (FEW | size).items() for text in (f"--{key}", str(value))]
    arguments = ["examples/ray_ddp.py", "2", "--config", "configs/quickstart.yaml", *REPETITION, *options]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = (tmp_path / "quickstart").iterdir()
    assert len(scalars(run, "reward/mean")) == 2
    assert {file.name.split("-")[0] for file in (run / "rollouts").rglob("*.jsonl")} == {"rank0", "rank1"}
    assert trained(run)["global_step"] == 2
    assert json.loads((run / "environment.json").read_text())["world_size"] == 2
    assert (run / "policy/config.json").is_file()
