"""GDPO in a run: the rewards of several verifiers, or of the parts of one, reach the advantage separately."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_lightning.advantages import GDPO
from grpo_lightning.rollout import Experience, RunCallback, StepEnd
from grpo_lightning.types import Sample, Verdict
from grpo_lightning.verifiers import Verifier, WeightedVerifier
from tests.toy import LetterVerifier, fit, grpo, same, sgd


class Parity(Verifier):
    """1 for an even number of characters; breaks where there is a ``z``."""

    def __init__(self) -> None:
        super().__init__(accept_truncated=True)

    def verify(self, sample: Sample) -> Verdict:
        if "z" in sample.completion:
            raise OSError("the checker is gone")
        return Verdict(correct=len(sample.completion.strip("aei")) % 2 == 0, format_valid=False)


class Learned(RunCallback):
    """Keeps what the step has learned from."""

    experience: Experience

    def on_step_end(self, trainer: Any, module: Any, end: StepEnd) -> None:
        assert end.experience is not None
        self.experience = end.experience


def two() -> list[Verifier]:
    return [LetterVerifier(), Parity()]


def parts() -> list[Verifier]:
    return [WeightedVerifier({"letters": LetterVerifier(), "even": Parity()}, weights={"letters": 1.0, "even": 0.1})]


@pytest.mark.parametrize(
    ("verifiers", "weights"),
    [(two, {"LetterVerifier": 1.0, "Parity": 1.0}), (parts, {"letters": 0.5, "even": 2.0})],
    ids=["verifiers", "parts"],
)
def test_the_advantages_of_a_run_are_those_of_the_formula(
    tiny_model: Callable[[str], str],
    tmp_path: Path,
    verifiers: Callable[[], list[Verifier]],
    weights: dict[str, float],
) -> None:
    watch, default = Learned(), set(weights.values()) == {1.0}
    options: dict[str, Any] = {"max_grad_norm": None, "optimizer": sgd, "max_error_rate": 1.0}
    advantage = GDPO() if default else GDPO(weights)
    module = grpo(tiny_model("llama"), verifiers=verifiers(), advantage=advantage, **options)
    changed = fit(tmp_path / "gdpo", module, 1, callbacks=[watch])
    batch = watch.experience
    assert batch.advantages is not None
    scores = torch.zeros(12)
    for name, weight in weights.items():
        rewards = torch.tensor([a.rewards_by_verifier[name] for a in batch.attempts])
        rewards = torch.where(batch.reward_N.isnan(), torch.nan, rewards)
        for start in range(0, 12, 4):
            group = rewards[start : start + 4]
            known = group[~group.isnan()]
            if len(known) > 1 and known.min() < known.max():
                normalised = (group - known.mean()) / (known.std() + 1e-4)
                scores[start : start + 4] += weight * normalised.nan_to_num(0.0)
    std = scores[~batch.reward_N.isnan()].std()
    torch.testing.assert_close(batch.advantages, scores / (std + 1e-4))
    assert batch.advantages.any()
    plain = fit(tmp_path / "plain", grpo(tiny_model("llama"), verifiers=verifiers(), **options), 1)
    assert not same(plain, changed)
