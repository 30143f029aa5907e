"""When the data module starts, feeds and stops its engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from grpo_lightning.__main__ import main
from grpo_lightning.errors import RunError
from grpo_lightning.models import Policy
from grpo_lightning.rollout.engines.base import OnFinish, Request
from grpo_lightning.rollout.engines.in_process import InProcessEngine
from grpo_lightning.rollout.sampling import SamplingParams
from grpo_lightning.types import Completion
from tests.toy import fit, grpo, rollouts

ROOT = Path(__file__).parents[2]


class RecordingEngine(InProcessEngine):
    """Writes down what it is asked for; fails at one version of the weights if told to."""

    def __init__(self, breaks_at: str | None = None) -> None:
        self.calls: list[str] = []
        self.breaks_at = breaks_at

    def start(self, policy: Policy, longest_row: int) -> None:
        self.calls.append(f"start {longest_row}")
        super().start(policy, longest_row)

    def push(self, policy: Policy, version: str) -> None:
        assert policy is self.policy
        self.calls.append(f"push {version}")
        if version == self.breaks_at:
            raise RunError("the server is gone")

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, on_finish: OnFinish | None = None
    ) -> list[Completion]:
        self.calls.append(f"generate {len(requests)}")
        return super().generate(requests, sampling, on_finish)

    def stop(self) -> None:
        self.calls.append("stop")


def test_weights_are_pushed_once_per_version_and_the_engine_stops_at_the_end(model_path: str, tmp_path: Path) -> None:
    engine = RecordingEngine()
    data = rollouts(engine=engine, rollout_rows_at_once=8)
    fit(tmp_path, grpo(model_path, updates_per_rollout=2), 4, data)
    longest = max(len(ids) for _, ids in data._prompts["train"].rows)
    # By hand: 3 prompts of 4 completions, 8 rows at a time; two optimizer steps per rollout.
    sampled = ["generate 8", "generate 4"]
    assert engine.calls == [
        f"start {max(longest, *(len(ids) for _, ids in data._prompts['val'].rows)) + 16}",
        "push step-0", *sampled, "push step-2", *sampled, "stop",
    ]  # fmt: skip


def test_the_engine_stops_when_a_run_breaks_off(model_path: str, tmp_path: Path) -> None:
    engine = RecordingEngine(breaks_at="step-1")
    with pytest.raises(RunError, match="the server is gone"):
        fit(tmp_path, grpo(model_path), 2, rollouts(engine=engine))
    assert engine.calls[-2:] == ["push step-1", "stop"]


def test_an_engine_is_chosen_in_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())
    config["data"]["engine"] = {"class_path": "InProcessEngine"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config", str(tmp_path / "own.yaml"), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["data"]["engine"]["class_path"].endswith("in_process.InProcessEngine")
