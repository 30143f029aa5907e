"""The command as a user types it: every shipped config, every subcommand, and the mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from grpo_lightning.__main__ import main
from grpo_lightning.cli.confidential import without_secrets
from grpo_lightning.cli.run_dirs import new_path
from grpo_lightning.cli.sentences import sentence
from grpo_lightning.cli.subcommands import SUMMARIES
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import Policy, PolicyConfig
from tests.processes import process_state_kept
from tests.tiny import save_tiny_model

ROOT = Path(__file__).parents[2]
GSM8K_FOLDER = ROOT.parent / "shared/data/gsm8k"
# Those of the tasks in JSON and code need overrides of their own: tests/tasks/test_task_configs.py runs them. Those of
# episodes run in tests/environments/test_episode_configs.py, and lfm_gsm8k in `finished_run`.
CONFIGS = sorted(
    path.name
    for path in (ROOT / "configs").glob("*.yaml")
    if not {"json", "code", "mbpp", "gym", "guess", "tools"} & set(path.stem.split("_")) and path.stem != "lfm_gsm8k"
)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped configs name their files from the root of the repository."""
    monkeypatch.chdir(ROOT)


def few(root: Path, **changes: Any) -> list[str]:
    """A few steps of any config, on a few rows: setting up encodes them all."""
    size = "limit" if "data.task.init_args.path" in changes else "train_size"
    options: dict[str, Any] = {
        f"data.task.init_args.{size}": 40,
        "trainer.default_root_dir": root, "trainer.accelerator": "cpu", "trainer.max_steps": 2,
        "trainer.val_check_interval": 1, "trainer.limit_val_batches": 1, "trainer.limit_test_batches": 1,
        "trainer.limit_predict_batches": 1, "trainer.enable_progress_bar": "false",
        "data.prompts_per_step": 2, "data.group_size": 2, "data.val_batch_size": 4, "data.sampling.max_new_tokens": 8,
    }  # fmt: skip
    return [text for key, value in (options | changes).items() for text in (f"--{key}", str(value))]


def only_run(root: Path, config: str) -> Path:
    (run,) = (root / config).iterdir()
    return run


@pytest.fixture
def lfm(tiny_model: Callable[[str], str], gsm8k_folder: str) -> dict[str, str]:
    """The two overrides that the configs of the real model need here: an LFM2-shaped model, and the real rows."""
    return {"model.init_args.policy.path": tiny_model("lfm2"), "data.task.init_args.path": gsm8k_folder}


@pytest.fixture(scope="module")
def finished_run(tiny_model: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps by the real config: tests read it, or change a copy."""
    if not GSM8K_FOLDER.is_dir():
        pytest.skip("the real GSM8K rows are not at hand")
    root = tmp_path_factory.mktemp("finished")
    lfm = {"model.init_args.policy.path": tiny_model("lfm2"), "data.task.init_args.path": str(GSM8K_FOLDER)}
    config = str(ROOT / "configs/lfm_gsm8k.yaml")
    with process_state_kept():
        main(["fit", "--config", config, *few(root, **lfm, **{"data.pass_at_k": "[1,2]"})])
    return only_run(root, "lfm_gsm8k")


def copied(run: Path, root: Path) -> Path:
    """Copy a run into another root folder."""
    return Path(shutil.copytree(run, root / run.parent.name / run.name))


# -- every shipped config ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_config_trains(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    overrides: dict[str, Any] = request.getfixturevalue("lfm") if name.startswith("lfm") else {}
    text = (ROOT / "configs" / name).read_text()
    if "warm_start:" in text:
        # The warm start is a config of its own, and in this list itself.
        overrides = overrides | {"warm_start": "null", "model.init_args.policy.init": "random"}
    if name == "quickstart_distill.yaml":
        # Its teacher is a run of quickstart_sft.yaml.
        policy = Policy(PolicyConfig(path="configs/tiny_decoder", init="random"))
        policy.save_pretrained(tmp_path / "teacher")
        overrides = overrides | {"model.init_args.teacher.path": str(tmp_path / "teacher")}
    if "quantization: " in text:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install -e .[quantised]")
        model = save_tiny_model(tmp_path / "model", "lfm2", hidden_size=64, intermediate_size=128)
        overrides = overrides | {"model.init_args.policy.path": model}
    main(["fit", "--config", f"configs/{name}", *few(tmp_path, **overrides, **{"trainer.max_steps": 1})])
    run = only_run(tmp_path, Path(name).stem)
    assert (run / "checkpoints/last.ckpt").is_file()
    assert (run / "policy/tokenizer_config.json").is_file()
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["data"]["prompts_per_step"] == 2


def test_the_real_config_validates_checkpoints_resumes_and_exports(
    lfm: dict[str, str], finished_run: Path, tmp_path: Path
) -> None:
    saved = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert saved["data"]["prompts_per_step"] == 2
    base = ["--config", "configs/lfm_gsm8k.yaml"]
    longer = {"trainer.max_steps": 3, "data.pass_at_k": "[1,2]"}
    main(["fit", *base, *few(tmp_path / "whole", **lfm, **longer)])
    part = copied(finished_run, tmp_path / "part")
    main(["fit", *base, *few(tmp_path / "part", **lfm, **longer), "--ckpt_path", "last"])
    whole = only_run(tmp_path / "whole", "lfm_gsm8k")
    one, other = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (whole, part))
    assert one["global_step"] == other["global_step"] == 3
    assert all(torch.equal(tensor, other["state_dict"][name]) for name, tensor in one["state_dict"].items())
    # The resumed run went on in its directory, beside its first config and with its curves continued.
    events = EventAccumulator(str(part))
    events.Reload()
    assert [event.step for event in events.Scalars("reward/mean")] == [0, 1, 2]
    assert {"config.yaml", "config-2.yaml"} <= {path.name for path in part.iterdir()}
    assert (part / "policy/adapter_config.json").is_file()
    assert (part / "policy/tokenizer_config.json").is_file()


def test_tensorboard_gets_the_curves(finished_run: Path) -> None:
    events = EventAccumulator(str(finished_run))
    events.Reload()
    curves = set(events.Tags()["scalars"])
    wanted = {
        "reward": "mean std correct format_valid errors groups_without_signal",
        "completion": "length_mean length_max truncated",
        "policy": "loss kl entropy clip_fraction ratio_max update_kl sampler_gap",
        "advantage": "std abs_mean",
        "optim": "lr grad_norm skipped_steps",
        "time": "rollout_s verify_s reference_s update_s",
        "throughput": "rollout_tokens_per_s train_tokens_per_s padding_efficiency",
        "val": "accuracy format_valid pass@1 pass@2",
    }
    assert {f"{group}/{name}" for group, names in wanted.items() for name in names.split()} <= curves
    # Two training steps; a validation before the first of them and after each.
    assert [event.step for event in events.Scalars("reward/mean")] == [0, 1]
    assert len(events.Scalars("val/accuracy")) == 3


def test_a_config_can_swap_its_verifier_and_objective_by_a_line(lfm: dict[str, str], tmp_path: Path) -> None:
    swaps = {
        "model.init_args.verifiers": "[{class_path: MathVerifier, init_args: {formats: [boxed], reward_format: 0.1}}]",
        "model.init_args.aggregation": "dr_grpo", "model.init_args.advantage": "none-scaled",
        "model.init_args.lr_scheduler": "{class_path: torch.optim.lr_scheduler.ConstantLR}",
        "data.refinement": "{mode: distill, budget: 1}",
    }  # fmt: skip
    main(["fit", "--config", "configs/lfm_gsm8k.yaml", *few(tmp_path, **lfm, **swaps, **{"trainer.max_steps": 1})])
    saved = yaml.safe_load((only_run(tmp_path, "lfm_gsm8k") / "config.yaml").read_text())
    (verifier,) = saved["model"]["init_args"]["verifiers"]
    assert verifier["init_args"]["formats"] == ["boxed"]


# -- the other subcommands --------------------------------------------------------------------------------------------


def test_validate_test_and_predict_from_a_checkpoint(
    lfm: dict[str, str], finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--config", "configs/lfm_gsm8k.yaml"]
    run = copied(finished_run, tmp_path)
    checkpoint = str(run / "checkpoints/last.ckpt")
    capsys.readouterr()
    for subcommand, metric in (("validate", "val/accuracy"), ("test", "test/accuracy")):
        main([subcommand, *base, *few(tmp_path, **lfm), "--ckpt_path", checkpoint])
        assert metric in capsys.readouterr().out
    main(["predict", *base, *few(tmp_path, **lfm), "--ckpt_path", checkpoint])
    file = only_run(run, "predict") / "predictions.jsonl"
    assert str(file) in capsys.readouterr().out
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 4
    assert {"prompt", "completion", "answer", "correct", "format_valid", "reward", "finish_reason"} <= rows[0].keys()


def test_a_checkpoint_is_what_gets_evaluated(tmp_path: Path) -> None:
    base = ["--config", "configs/quickstart_sft.yaml"]
    options = {"trainer.max_steps": 6, "trainer.val_check_interval": 6, "data.prompts_per_step": 16}
    main(["fit", *base, *few(tmp_path / "fit", **options)])
    run = only_run(tmp_path / "fit", "quickstart_sft")
    main(["predict", *base, *few(tmp_path / "initial")])
    main(["predict", *base, *few(tmp_path / "fit"), "--ckpt_path", str(run / "checkpoints/last.ckpt")])
    folders = only_run(tmp_path / "initial", "quickstart_sft"), only_run(run, "predict")
    initial, trained = ((folder / "predictions.jsonl").read_text() for folder in folders)
    assert initial != trained


def test_check_puts_the_gold_answers_before_the_verifiers(
    gsm8k_folder: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = ["--config", "configs/lfm_gsm8k.yaml", "--data.task.init_args.path"]
    main(["check", *config, gsm8k_folder])
    assert "GSM8K: every gold answer that was checked is correct to MathVerifier" in capsys.readouterr().out
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"prompt": "2 + 2?", "answer": "4"}\n')
    task = {"class_path": "Tabular", "init_args": {"path": str(tmp_path), "gold_format": "It is {answer}"}}
    with pytest.raises(SystemExit, match="2"):
        main(["check", "--config", "configs/lfm_gsm8k.yaml", "--data.task", json.dumps(task)])
    captured = capsys.readouterr()
    assert "3 gold answers do not satisfy their own verifier" in captured.err
    assert "test row 0: MathVerifier rejects 'It is 4': No final answer was found" in captured.out


def test_verify_scores_completions_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"completion": "#### 4", "answer": "4"},
        {"completion": "#### 5", "answer": "4"},
        {"completion": "four", "answer": "4"},
    ]
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"completion": "#### 1"}]))
    base = ["verify", "--config", "configs/lfm_gsm8k.yaml", "--samples"]
    main([*base, str(file)])
    out = capsys.readouterr().out
    assert "MathVerifier: 4 completions: 1 correct, 1 format only, 1 wrong, 1 error; slowest" in out
    assert "The final answer is not correct" in out
    for text, bad in (("line 1", '{"answer": 1}'), ("line 2", '{"completion": "x"}\nnothing'), ("has no rows", "")):
        file.write_text(bad)
        with pytest.raises(SystemExit, match="2"):
            main([*base, str(file)])
        assert text in capsys.readouterr().err
    for arguments in ([str(tmp_path / "none.jsonl")], []):
        with pytest.raises(SystemExit, match="2"):
            main([*base, *arguments])
        assert "grpo: error: --samples: " in capsys.readouterr().err


def test_a_verifier_in_the_current_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gsm8k_folder: str, tiny_model: Callable[[str], str]
) -> None:
    (tmp_path / "mine.py").write_text("def brief(completion, answer):\n    return float(len(completion) < 9)\n")
    config = str(ROOT / "configs/lfm_gsm8k.yaml")
    overrides = {"model.init_args.policy.path": tiny_model("lfm2"), "data.task.init_args.path": gsm8k_folder}
    verifier = "[{class_path: FunctionVerifier, init_args: {function: mine.brief, style: answer}}]"
    overrides |= {"trainer.max_steps": 1, "model.init_args.verifiers": verifier}
    monkeypatch.chdir(tmp_path)
    # The console script does not put the current folder on the path by itself.
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", str(tmp_path))])
    try:
        main(["fit", "--config", config, *few(tmp_path, **overrides)])
        assert Path(sys.modules["mine"].__file__ or "") == tmp_path / "mine.py"
    finally:
        sys.modules.pop("mine", None)


# -- warm start -------------------------------------------------------------------------------------------------------


def test_a_warm_start_trains_first_and_is_not_repeated_on_resume(tmp_path: Path) -> None:
    sft = yaml.safe_load((ROOT / "configs/quickstart_sft.yaml").read_text())
    sft["trainer"] |= {"max_steps": 3, "val_check_interval": 3, "limit_val_batches": 1}
    sft["data"] |= {"prompts_per_step": 4, "val_batch_size": 4}
    sft["data"]["task"]["init_args"]["train_size"] = 40
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(sft))
    base = ["fit", "--config", "configs/quickstart.yaml", "--warm_start", str(tmp_path / "sft.yaml")]
    main([*base, *few(tmp_path / "runs")])
    run = only_run(tmp_path / "runs", "quickstart")
    warm = run / "warm_start"
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["policy"]["path"] == str(
        warm / "policy"
    )
    start = AutoModelForCausalLM.from_pretrained(warm / "policy")
    end = AutoModelForCausalLM.from_pretrained(run / "policy")
    moved = [(a - b).abs().max().item() for a, b in zip(start.parameters(), end.parameters(), strict=True)]
    assert max(moved) < 0.1, "the policy should have gone on from the warm start"
    written = (warm / "policy/config.json").stat().st_mtime_ns
    main([*base, *few(tmp_path / "runs", **{"trainer.max_steps": 3}), "--ckpt_path", "last"])
    assert (warm / "policy/config.json").stat().st_mtime_ns == written
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3


def short_warm_start(folder: Path) -> Path:
    sft = yaml.safe_load((ROOT / "configs/quickstart_sft.yaml").read_text())
    sft["trainer"] |= {"max_steps": 1, "val_check_interval": 1, "limit_val_batches": 1}
    sft["data"] |= {"prompts_per_step": 4, "val_batch_size": 4}
    sft["data"]["task"]["init_args"]["train_size"] = 40
    file = folder / "sft.yaml"
    file.write_text(yaml.safe_dump(sft))
    return file


def test_a_checkpoint_is_evaluated_on_the_warm_start_of_its_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--config", "configs/quickstart.yaml"]
    main(["fit", *base, *few(tmp_path / "runs", warm_start=short_warm_start(tmp_path))])
    run = only_run(tmp_path / "runs", "quickstart")
    checkpoint = ["--ckpt_path", str(run / "checkpoints/last.ckpt")]
    for subcommand in ("validate", "test", "predict"):
        main([subcommand, *base, *few(tmp_path), *checkpoint])
        saved = yaml.safe_load((only_run(run, subcommand) / "config.yaml").read_text())
        policy = {"path": str(run / "warm_start/policy"), "init": "pretrained"}
        assert policy.items() <= saved["model"]["init_args"]["policy"].items()
    (run / "warm_start").rename(run / "gone")
    for arguments, text in ((checkpoint, f"give --config {run}/config.yaml"), ([], "give RUN/config.yaml as --config")):
        capsys.readouterr()
        with pytest.raises(SystemExit, match="2"):
            main(["test", *base, *few(tmp_path), *arguments])
        assert text in capsys.readouterr().err


def test_the_config_that_a_run_saved_is_checked_tried_and_planned(
    lfm: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", "--config", "configs/lfm_gsm8k.yaml", *few(tmp_path, **lfm)])
    run = only_run(tmp_path, "lfm_gsm8k")
    main(["fit", "--config", str(run / "config.yaml"), "--trainer.max_steps", "3", "--ckpt_path", "last"])
    (tmp_path / "samples.jsonl").write_text('{"completion": "#### 4", "answer": "4"}\n')
    for config in (run / "config.yaml", run / "config-2.yaml"):  # the second has a ckpt_path
        main(["check", "--config", str(config)])
        main(["verify", "--config", str(config), "--samples", str(tmp_path / "samples.jsonl")])
        with pytest.raises(SystemExit, match="0"):
            main(["plan", "--config", str(config), "--fast"])
        out = capsys.readouterr().out
        assert all(text in out for text in ("every gold answer", "MathVerifier: 1 completions", "The plan fits"))


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model.init_args.betta", "3"], "model.betta: there is no such key (did you mean beta?)"),
        (["--model.init_args.beta", "high"], "model.beta: must be a number, not high"),
        (["--data.group_sice", "3"], "data.group_sice: there is no such key (did you mean group_size?)"),
        (["--model.class_path", "GRPOModul"], "(did you mean GRPOModule?)"),
        (["--data.task.class_path", "GSM8"], "(did you mean GSM8K?)"),
        (
            ["--model.init_args.policy.dtype", "float8"],
            "model.policy.dtype: must be one of float32, bfloat16, float16",
        ),
        (["--model.init_args.max_grad_norm", "-1"], "model.max_grad_norm: must be above 0"),
        (["--data.sampling.top_p", "3"], "data.sampling.top_p: must be above 0 and at most 1, not 3.0"),
        (["--trainer.gradient_clip_val", "1"], "trainer.gradient_clip_val: set model.max_grad_norm instead"),
        (["--trainer.accumulate_grad_batches", "2"], "set model.max_tokens_per_microbatch instead"),
        (["--trainer.val_check_interval", "0.5"], "val_check_interval"),
        (
            ["--config", "configs/none.yaml"],
            "config: there is no file configs/none.yaml: grpo configs lists those",
        ),
        (["--ckpt_path", "none.ckpt"], "ckpt_path: there is no checkpoint none.ckpt"),
        (["--ckpt_path", "last"], "has a last checkpoint: give the path of one"),
        (
            ["--data.task.init_args.path", "./none"],
            "data.task.init_args.path: the file or folder ./none does not exist",
        ),
        (["--model.init_args.policy.path", "./none"], "model.policy.path: there is no folder ./none"),
        (["--data.max_prompt_tokens", "3"], "data.max_prompt_tokens: all"),
        (["--data.group_size", "1"], "data.group_size: an advantage relative to the group needs at least 2"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    lfm: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", "configs/lfm_gsm8k.yaml", *few(tmp_path, **lfm), *options])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("grpo: error: ")]
    assert len(errors) == 1
    assert text in errors[0]


def test_a_verifier_that_breaks_stops_the_command_with_exit_code_1(
    lfm: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verifiers = {"model.init_args.verifiers": '[{class_path: tests.toy.BrokenVerifier, init_args: {"on": ""}}]'}
    with pytest.raises(SystemExit, match="1"):
        main(["fit", "--config", "configs/lfm_gsm8k.yaml", *few(tmp_path, **lfm, **verifiers)])
    assert "grpo: stopped: a verifier broke on 4 of 4 completions" in capsys.readouterr().err


def test_an_unknown_subcommand_lists_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["trian"])
    assert "no subcommand 'trian': use one of fit, validate, test, predict, check, verify" in capsys.readouterr().err


def test_independently_launched_processes_need_a_run_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GRPO_RUN_DIR", raising=False)
    first = new_path(tmp_path, "x")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert new_path(tmp_path, "x") == first, "a process that Lightning started has the first one's directory"
    monkeypatch.delenv("GRPO_RUN_DIR")
    with pytest.raises(ConfigError, match="or give --run_dir"):
        new_path(tmp_path, "x")


def test_the_parsers_own_words_are_boiled_down() -> None:
    message = (
        'Parser key "model":\n  Does not validate against any of the Union subtypes\n'
        "  Subtypes: [<class 'a.B'>, <class 'NoneType'>]\n  Errors:\n"
        "    - Problem with given class_path 'a.B':\n        Option 'epsilonn' is not accepted\n"
        "    - Expected a <class 'NoneType'>\n  Given value type: <class 'dict'>\n  Given value: {}"
    )
    assert sentence(message, ["epsilon", "model"], {}) == "model.epsilonn: there is no such key (did you mean epsilon?)"
    assert sentence("something else", [], {}) == "something else"


# -- help -------------------------------------------------------------------------------------------------------------


def test_help_and_version_load_nothing_heavy() -> None:
    code = (
        "import sys; from grpo_lightning.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'lightning', 'transformers', 'jsonargparse'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for subcommand in SUMMARIES:
        assert f"  {subcommand} " in done.stdout
    for algorithm in ("GRPO", "PPO", "SFT"):
        assert algorithm in done.stdout.split("subcommands:")[1].split("validate")[0]
    version = subprocess.run(
        [sys.executable, "-m", "grpo_lightning", "--version"], capture_output=True, text=True, check=True
    )
    assert version.stdout.startswith("grpo-lightning 0.")


def test_the_options_of_fit_are_a_decision(capsys: pytest.CaptureFixture[str]) -> None:
    """A new top-level option of ours is a decision: this list is where it is taken."""
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--help"])
    out = capsys.readouterr().out
    ours = {
        line.split()[0].removeprefix("--").split(".")[0].strip(",")
        for line in out.splitlines()
        if line.startswith("  --")
    }
    assert ours == {
        "seed_everything", "trainer", "model", "data", "run_dir", "warm_start", "reuse_warm_start", "ckpt_path",
        "weights_only", "checkpoint", "health_check", "summary", "export", "predictions", "rollouts", "tensorboard",
        "print_config", "config",
    } - ({"print_config", "config"} - ours)  # fmt: skip


def test_a_warm_start_that_broke_off_is_made_anew(tmp_path: Path) -> None:
    sft = yaml.safe_load((ROOT / "configs/quickstart_sft.yaml").read_text())
    sft["trainer"] |= {"max_steps": 1, "val_check_interval": 1, "limit_val_batches": 1}
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(sft))
    broken = tmp_path / "one/warm_start"
    broken.mkdir(parents=True)
    (broken / "config.yaml").write_text("of the run that broke off")
    base = ["fit", "--config", "configs/quickstart.yaml", "--warm_start", str(tmp_path / "sft.yaml")]
    main([*base, *few(tmp_path), "--run_dir", str(tmp_path / "one")])
    assert (broken / "policy").is_dir()
    assert (tmp_path / "one/checkpoints/last.ckpt").is_file()


def test_a_run_by_the_config_of_another_run_has_a_directory_of_its_own(finished_run: Path) -> None:
    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in finished_run.rglob("*") if path.is_file()}

    before, runs = written(), set(finished_run.parent.iterdir())
    main(["fit", "--config", str(finished_run / "config.yaml")])
    assert written() == before
    (second,) = set(finished_run.parent.iterdir()) - runs
    assert (second / "checkpoints/last.ckpt").is_file()
    assert (second / "config.yaml").read_text() == (finished_run / "config.yaml").read_text()


def test_a_run_dir_holds_one_run(lfm: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fit", "--config", "configs/lfm_gsm8k.yaml", *few(tmp_path, **lfm), "--run_dir", str(tmp_path / "one")]
    main(arguments)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "one already holds a run: omit run_dir for a new one, or continue" in capsys.readouterr().err
    one, two = tmp_path / "one", tmp_path / "two"
    main([*arguments[:-1], str(two)])
    before = sorted(path for path in one.rglob("*"))
    checkpoint = ["--ckpt_path", str(one / "checkpoints/last.ckpt")]
    for subcommand in ("validate", "test", "predict"):
        with pytest.raises(SystemExit, match="2"):
            main([subcommand, *arguments[1:], *checkpoint])
        error = capsys.readouterr().err
        assert error.endswith(f"run_dir: {one} already holds a run: omit run_dir for a new one\n")
    with pytest.raises(SystemExit, match="2"):
        main([*arguments[:-1], str(two), *checkpoint])
    assert "two already holds a run" in capsys.readouterr().err, "with the checkpoint of another run"
    assert sorted(path for path in one.rglob("*")) == before
    main([*arguments, *checkpoint])
    assert (one / "config-2.yaml").is_file()
    main(["test", *arguments[1:-1], str(one / "test"), *checkpoint])
    assert (one / "test/test_results.jsonl").is_file()


# -- what a run was made with -----------------------------------------------------------------------------------------


def test_the_command_is_recorded_as_it_was_given(lfm: dict[str, str], tmp_path: Path) -> None:
    logger = "{class_path: CSVLogger, init_args: {save_dir: ., name: '', version: ''}}"
    arguments = ["fit", "--config", "configs/lfm_gsm8k.yaml", *few(tmp_path, **lfm), "--trainer.logger", logger]
    main(arguments)
    made_with = json.loads((only_run(tmp_path, "lfm_gsm8k") / "environment.json").read_text())
    assert made_with["command"] == ["grpo", *arguments]


def test_secrets_are_not_recorded() -> None:
    given = [
        "--trainer.logger", "{class_path: WandbLogger, init_args: {api_key: abc, project: monkey}}",
        "--x.hf_token", "s1",
        "--a.PASSWORD=s2", "--data.sampling.max_new_tokens", "8",
        "--model.max_tokens_per_microbatch=64",
        '{"token": "s3", "tokens": 5}', "--monkey", "banana",
    ]  # fmt: skip
    assert without_secrets(given) == [
        "--trainer.logger", "{class_path: WandbLogger, init_args: {api_key: ***, project: monkey}}",
        "--x.hf_token", "***",
        "--a.PASSWORD=***", "--data.sampling.max_new_tokens", "8",
        "--model.max_tokens_per_microbatch=64",
        '{"token": ***, "tokens": 5}', "--monkey", "banana",
    ]  # fmt: skip
