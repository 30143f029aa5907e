"""Every shipped callback as a user gives it: in YAML, by its short class name, through the command."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import grpo_lightning.callbacks
from grpo_lightning.__main__ import main
from grpo_lightning.callbacks import RunCheckpoint
from tests.toy import grpo, rollouts, trainer

SHIPPED = sorted(
    name for name in grpo_lightning.callbacks.__all__ if isinstance(getattr(grpo_lightning.callbacks, name), type)
)
NEEDED: dict[str, dict[str, Any]] = {
    "Cost": {"price_per_hour": 2.0}, "StopWhen": {"max_kl": 9.0}, "TokenBudget": {"tokens": 100_000},
}  # fmt: skip
"""What has no default: the rest works as it is."""
STOPS = ("max_kl", "reward")
DESIGN = """
seed_everything: 42
trainer:
  max_steps: 500
  precision: bf16-mixed
  val_check_interval: 50
  callbacks: [{class_path: ReferenceSync}, {class_path: VRAMProfiler}]
model:
  class_path: GRPOModule
  init_args:
    policy:
      path: LiquidAI/LFM2.5-1.2B-Instruct
      dtype: bfloat16
      lora: {r: 16, alpha: 32, target_modules: all-linear}
    verifiers: [{class_path: MathVerifier}]
    beta: 0.04
    epsilon: 0.2
    updates_per_rollout: 1
    max_tokens_per_microbatch: 8192
    max_grad_norm: 1.0
data:
  task: {class_path: GSM8K, init_args: {path: openai/gsm8k}}
  prompts_per_step: 8
  group_size: 8
  sampling: {temperature: 1.0, max_new_tokens: 512}
  val_sampling: {temperature: 0.0}
"""


@pytest.fixture
def run(tiny_model: Callable[[str], str], tmp_path: Path) -> Callable[..., Path]:
    """``run(subcommand, callbacks)`` runs a tiny config with them, and gives the run dir."""

    def start(subcommand: str, callbacks: list[dict[str, Any]], **changes: Any) -> Path:
        config: dict[str, Any] = {
            "trainer": {
                "accelerator": "cpu", "max_steps": 2, "val_check_interval": 1, "limit_val_batches": 1,
                "limit_test_batches": 1, "enable_model_summary": False, "callbacks": callbacks,
            },
            "model": {
                "class_path": "GRPOModule",
                "init_args": {
                    "policy": {"path": tiny_model("lfm2"), "lora": {"r": 2, "alpha": 4}},
                    "verifiers": [{"class_path": "MathVerifier"}],
                    "beta": 0.1,
                },
            },
            "data": {
                "task": {"class_path": "Arithmetic", "init_args": {"train_size": 40, "val_size": 4, "test_size": 4}},
                "prompts_per_step": 2, "group_size": 2, "sampling": {"max_new_tokens": 4},
            },
        }  # fmt: skip
        file = tmp_path / f"{subcommand}.yaml"
        file.write_text(yaml.safe_dump(config))
        run_dir = tmp_path / f"run-{subcommand}"
        options = [text for key, value in changes.items() for text in (f"--{key}", str(value))]
        main([subcommand, "--config", str(file), "--run_dir", str(run_dir), *options])
        return run_dir

    return start


def listed(name: str) -> dict[str, Any]:
    return {"class_path": name, "init_args": NEEDED.get(name, {})}


def test_every_class_that_is_shipped_is_tested() -> None:
    assert len(SHIPPED) >= 10
    assert all(isinstance(getattr(grpo_lightning.callbacks, name), type) for name in SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_each_alone(name: str, run: Callable[..., Path], tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    """In a training with its validation by the command, and in a test by the Trainer; all run together below."""
    folder = run("fit", [listed(name)], **{"trainer.max_steps": 1})
    callbacks = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["callbacks"]
    assert [entry["class_path"].rsplit(".", 1)[1] for entry in callbacks if name in entry["class_path"]] == [name]
    callback = getattr(grpo_lightning.callbacks, name)(**NEEDED.get(name, {}))
    module = grpo(tiny_model("lfm2"), beta=0.1)
    # Lightning refuses a listed checkpoint or progress bar where they are switched off.
    switches = {"enable_checkpointing": True, "enable_progress_bar": True}
    trainer(tmp_path / "test", 1, callbacks=[callback], limit_test_batches=1, **switches).test(
        module, datamodule=rollouts()
    )


def test_all_together(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for subcommand in ("fit", "validate", "test"):
        with caplog.at_level(logging.INFO, "grpo_lightning"):
            run(subcommand, [listed(name) for name in SHIPPED])
        # A callback that every run has is there once, though it was listed.
        assert caplog.text.count("preflight: reward") == 1, "in fit alone"
        assert capsys.readouterr().out.count("run dir     ") == (subcommand == "fit")


class OwnCheckpoint(RunCheckpoint):
    """A subclass takes the place of its parent, too."""


def test_a_listed_callback_takes_the_place_of_the_one_that_every_run_has(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Beside it, one whose default PyYAML cannot write, and two of one class.
    beside = [{"class_path": "Timer"}, *({"class_path": "StopWhen", "init_args": {name: 9.0}} for name in STOPS)]
    beside.append({"class_path": f"{__name__}.OwnCheckpoint"})  # a second RunCheckpoint is refused
    folder = run("fit", [{"class_path": "PolicyExport", "init_args": {"enabled": False}}, *beside])
    assert not (folder / "policy").exists()
    saved = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["callbacks"]
    assert [one["init_args"]["interval"] for one in saved if one["class_path"].endswith("Timer")] == ["step"]
    states = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["callbacks"]
    assert len([key for key in states if key.startswith("StopWhen")]) == 2
    for listed, option, said in (
        ("Checkpoint", {}, "trainer.callbacks: Checkpoint is Lightning's empty base class: write RunCheckpoint"),
        (
            "PolicyExport", {"export.best": True},
            "export.best: has no effect, because trainer.callbacks lists PolicyExport: set it in the init_args",
        ),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            run("fit", [{"class_path": listed}], run_dir=tmp_path / "another", **option)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_the_design_s_config_runs(
    tiny_model: Callable[[str], str], gsm8k_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "design.yaml"
    file.write_text(DESIGN)
    main([
        "fit", "--config", str(file), "--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu",
        "--trainer.max_steps", "2", "--trainer.limit_val_batches", "1", "--data.val_batch_size", "2",
        "--model.init_args.policy.path", tiny_model("lfm2"), "--data.task.init_args.path", gsm8k_folder,
        "--data.prompts_per_step", "2", "--data.group_size", "2", "--data.sampling.max_new_tokens", "4",
    ])  # fmt: skip
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    curves = set(events.Tags()["scalars"])
    assert {"reference/moves", "memory/allocated_gib", "memory/validation_peak_gib"} <= curves
    assert {f"memory/{phase}_peak_gib" for phase in ("rollout", "verify", "reference", "update")} <= curves
    assert "| update | 2 |" in capsys.readouterr().out
