"""docs/metrics.md names the curves that runs log: all of them, and no others."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grpo_lightning.algorithms import PPOModule, SFTModule
from grpo_lightning.callbacks import AdaptiveKL, ReferenceSync, VRAMProfiler
from grpo_lightning.models import PolicyConfig
from grpo_lightning.rollout import RefinementConfig, SamplingParams
from tests.toy import BrokenVerifier, LetterVerifier, Watch, adam, fit, grpo, rollouts

ROOT = Path(__file__).parents[2]


def documented(kind: str = "") -> set[str]:
    text = re.sub(r"<!--.*?-->", "", (ROOT / "docs/metrics.md").read_text(), flags=re.S)
    cells = re.findall(r"^\| (`[^|]+`) \|", text, flags=re.M)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell) if kind in name}


@pytest.fixture(scope="module")
def logged(tiny_model: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The curves of tiny runs that use all there is."""
    folder, path, watch = tmp_path_factory.mktemp("runs"), tiny_model("lfm2"), Watch()
    options: dict[str, Any] = {"callbacks": [watch], "limit_val_batches": 1, "val_check_interval": 1}
    for feedback in ("format", "verdict"):
        refinement = RefinementConfig(val_feedback=feedback)
        data = rollouts(refinement=refinement, sampling=SamplingParams(max_new_tokens=16, top_k=200), pass_at_k=[1, 2])
        verifiers = [LetterVerifier(), BrokenVerifier("q")]
        fit(folder, grpo(path, beta=0.1, verifiers=verifiers, max_error_rate=1.0), 2, data, **options)
    fit(folder, SFTModule(PolicyConfig(path=path), [LetterVerifier()], adam), 2, **options)
    ppo = PPOModule(policy=PolicyConfig(path=path), verifiers=[LetterVerifier()], optimizer=adam, beta=0.1)
    fit(folder, ppo, 2, **options | {"callbacks": [watch, VRAMProfiler()]})
    steered = [AdaptiveKL(), ReferenceSync(every_n_steps=1), watch]
    fit(folder, grpo(path, beta=0.1), 2, **options | {"callbacks": steered})
    return {name for one in watch.logged for name in one}


def as_documented(name: str) -> str:
    if name in ("reward/LetterVerifier", "reward/BrokenVerifier"):
        return "reward/<verifier>"
    if name in ("val/reward/LetterVerifier", "val/reward/BrokenVerifier"):
        return "val/reward/<name>"
    return re.sub(r"@\d+$", "@<k>", name)


def test_every_curve_of_a_run_is_in_the_document(logged: set[str]) -> None:
    curves = {as_documented(name) for name in logged if "/" in name}
    assert {"val/pass@<k>", "reward/<verifier>", "policy/truncation_gap", "refinement/correct"} <= curves
    assert not curves - documented()


def test_the_document_names_no_curve_that_the_code_does_not_know(logged: set[str]) -> None:
    sources = [*(ROOT / "grpo_lightning").rglob("*.py"), *(ROOT / "callbacks").glob("*.py")]
    literals = {name for file in sources for name in re.findall(r'"([a-z]+/[a-z_]+)"', file.read_text())}
    curves = {as_documented(name) for name in logged}
    # The profiler puts its names together from the phases; some of them are only measured on CUDA.
    phases = ("rollout", "verify", "reference", "value", "update", "validation", "test")
    profiled = {f"memory/{phase}_peak_gib" for phase in phases}
    profiled |= {"memory/allocated_gib", "memory/reserved_gib", "memory/fragmentation"}
    assert documented() - curves - literals - profiled == set()


def test_every_row_says_what_the_curve_is() -> None:
    rows = re.findall(r"^\| `[^|]+` \|([^|]+)\|([^|]*)\|([^|]*)\|$", (ROOT / "docs/metrics.md").read_text(), flags=re.M)
    assert len(rows) == len(re.findall(r"^\| `", (ROOT / "docs/metrics.md").read_text(), flags=re.M))
    assert all(meaning.strip() for meaning, _, _ in rows)
