"""Every registered shortcut compared with the plain way, on every model shape, full and LoRA.

A new shortcut is tested here as soon as it is in ``SHORTCUTS``.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import pytest
import torch

from grpo_lightning.algorithms.microbatch import microbatches
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig
from grpo_lightning.rollout.batch import token_rows
from grpo_lightning.rollout.engines import in_process
from grpo_lightning.rollout.engines.base import Request
from grpo_lightning.rollout.sampling import SamplingParams
from grpo_lightning.speed import compiled, graphs, packed
from grpo_lightning.speed.base import Shortcut
from grpo_lightning.speed.compiled import NOT_ASKED_FOR, CompiledLayers
from grpo_lightning.speed.registry import NAMES, SHORTCUTS, SWITCHED_OFF
from grpo_lightning.types import Completion, TokenRows
from tests.sampling import generate
from tests.tape import Tape

OF_TRAINED_WEIGHTS = {"in_place_gradients", "kept_probabilities"}
"""Those that an adapter, which leaves embedding and head frozen, rules out."""
KINDS = ("llama", "qwen3", "lfm2", "lfm3")
BEGINNING = [1, *range(100, 140)]
PROMPTS = [[*BEGINNING, 30, 40, 50], [*BEGINNING, 60, 61, 62, 63, 64, 65, 66], [*BEGINNING, 90]]
BY_NAME = {shortcut.name: shortcut for shortcut in SHORTCUTS}


class Results(NamedTuple):
    """The results of a policy, and the functions that it ran."""

    completions: list[Completion]
    logprobs_NT: torch.Tensor
    gradients: dict[str, torch.Tensor]
    ran: set[CodeType]
    lines: list[str]


@contextmanager
def recording() -> Iterator[set[CodeType]]:
    """Record the code of all Python functions that are entered in the context."""
    ran: set[CodeType] = set()
    sys.setprofile(lambda frame, event, _: ran.add(frame.f_code) if event == "call" else None)
    try:
        yield ran
    finally:
        sys.setprofile(None)


def code_of(shortcut: Shortcut) -> CodeType:
    module, _, path = shortcut.runs.partition(":")
    function: Any = functools.reduce(getattr, path.split("."), importlib.import_module(module))
    return inspect.unwrap(function).__code__


def learning_rows() -> TokenRows:
    """Two groups with prompts long enough to share, equal completions, and one that is a prefix of another."""
    draw = torch.Generator().manual_seed(0)
    one, other = (torch.randint(8, 264, (length,), generator=draw).tolist() for length in (24, 31))
    rows = [(one, [40, 41, 42, 7]), (one, [40, 41, 42, 7]), (one, [50, 51, 7]), (one, [60])]
    rows += [(other, [70, 71, 72, 73, 74, 7]), (other, [80, 81, 7])]
    return token_rows([prompt for prompt, _ in rows], [completion for _, completion in rows], 0)


def results(policy: Policy, recorded: bool = True) -> Results:
    """Compute completions with continuations, and log-probs with their gradients."""

    def follow(rows: list[int], done: list[Completion]) -> list[Request]:
        return [Request([1, *one.token_ids, 33], 100 + row) for row, one in zip(rows, done, strict=True) if row < 12]

    with recording() if recorded else nullcontext(set()) as ran:
        completions = generate(policy, PROMPTS, 4, SamplingParams(max_new_tokens=12), list(range(12)), follow)
        tokens = learning_rows()
        logprobs_NT = torch.zeros(len(tokens), 6)
        for part in microbatches(tokens, torch.arange(len(tokens)), 10**6, policy.shares_prompts, overhead=1):
            with policy.adding_gradients():
                part_NT, entropy_NT = policy.logprobs(part.tokens, temperature=0.8)
                logprobs_NT[part.rows, : part_NT.shape[1]] = part_NT.detach()
                weights_NT = torch.linspace(-1, 2, 36).view(6, 6)[part.rows, : part_NT.shape[1]]
                (part_NT * weights_NT).sum().backward()
        assert not entropy_NT.isnan().any()
    gradients = {name: p.grad for name, p in policy.named_parameters() if p.requires_grad and p.grad is not None}
    assert len(gradients) == len(policy.trainable_parameters())
    return Results(completions, logprobs_NT, gradients, ran, policy.shortcuts.lines())


@pytest.fixture(scope="module")
def results_of(tiny_model: Callable[[str], str]) -> Callable[..., Results]:
    @functools.cache
    def run(kind: str, lora: bool, without: str | None = None, compiles: bool = False) -> Results:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(in_process, "MIN_JOIN_FRACTION", 0)
            monkeypatch.setattr(in_process, "MAX_CACHE_GROWTH", 100)
            monkeypatch.setattr(packed, "MAX_TRANSPOSED_ELEMENTS", 0)
            monkeypatch.setitem(graphs.RECORDERS, "cpu", Tape)
            monkeypatch.setattr(compiled, "BACKEND", "eager")  # runs what was captured, and makes no code of it
            adapter = LoRAConfig(r=4, alpha=8) if lora else None
            options = {} if without is None else {"without": [without]}
            path = tiny_model(kind)  # makes the model the first time, with a seed of its own
            torch.manual_seed(0)
            policy = Policy(PolicyConfig(path=path, lora=adapter, compile=compiles, **options))
            torch.manual_seed(1)
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.2)
            if compiles:  # capturing calls many functions, and each would be recorded
                results(policy, recorded=False)
                policy.zero_grad()
            return results(policy)

    return run


@pytest.mark.parametrize(
    ("name", "kind", "lora"),
    [
        (name, kind, lora)
        for name, kind, lora in itertools.product(NAMES, KINDS, [False, True])
        if not (lora and name in OF_TRAINED_WEIGHTS)  # it is not used there
    ],
)
def test_the_plain_way_gives_the_same_completions_logprobs_and_gradients(
    results_of: Callable[..., Results], name: str, kind: str, lora: bool
) -> None:
    # Capturing takes many seconds for each kind of layer, and again under an adapter.
    compiles = name == CompiledLayers.name and (kind, lora) in (("llama", True), ("lfm2", False))
    usual, plain = results_of(kind, lora, None, compiles), results_of(kind, lora, name)
    assert (f"shortcut {CompiledLayers.name}: used" in usual.lines) == compiles
    for one, other in zip(sorted(usual.completions, key=ids), sorted(plain.completions, key=ids), strict=True):
        assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(usual.logprobs_NT, plain.logprobs_NT, atol=1e-4, rtol=1e-4)
    assert usual.gradients.keys() == plain.gradients.keys()
    for path, gradient in plain.gradients.items():
        assert gradient.norm() > 0
        assert (usual.gradients[path] - gradient).norm() <= 1e-4 * gradient.norm(), path
    used = f"shortcut {name}: used" in usual.lines
    assert (code_of(BY_NAME[name]) in usual.ran) == used
    assert code_of(BY_NAME[name]) not in plain.ran
    assert f"shortcut {name}: not used: {SWITCHED_OFF}" in plain.lines
    # A switch is for one shortcut, and for those that need it.
    switched = {name, *(other.name for other in SHORTCUTS if other.needs is type(BY_NAME[name]))}
    usual_others, plain_others = (
        [line for line in lines if line.split()[1].rstrip(":") not in switched] for lines in (usual.lines, plain.lines)
    )
    assert usual_others == plain_others
    assert all("not used" in line for line in plain.lines if line.split()[1].rstrip(":") in switched)


def ids(completion: Completion) -> list[int]:
    """Further requests are numbered as they arrive, which depends on when the others end."""
    return completion.token_ids


def test_most_shortcuts_are_used_on_every_shape(results_of: Callable[..., Results]) -> None:
    """By hand: which are not used, and why. Otherwise the comparisons might compare the plain way with itself."""
    for kind in KINDS:
        # Sliding windows drop tokens, so their caches cannot be widened, and direct decoding does not support them.
        expected = {"direct_decoding", "graphed_decoding", "early_joins"} if kind == "lfm3" else set()
        # A convolution keeps the last tokens only: its cache cannot be cut.
        expected |= {"shared_beginnings"} if kind in ("lfm2", "lfm3") else set()
        for lora in (False, True):
            lines = results_of(kind, lora).lines
            assert [line.split(":")[0] for line in lines] == [f"shortcut {name}" for name in NAMES]
            unused = {line.split()[1].rstrip(":") for line in lines if "not used" in line}
            assert unused == expected | {CompiledLayers.name} | (OF_TRAINED_WEIGHTS if lora else set())


@pytest.mark.parametrize("without", [[], *([name] for name in NAMES), list(NAMES)], ids=str)
def test_the_log_has_one_line_per_shortcut(
    tiny_model: Callable[[str], str], caplog: pytest.LogCaptureFixture, without: list[str]
) -> None:
    with caplog.at_level(logging.INFO, logger="grpo_lightning"):
        policy = Policy(PolicyConfig(path=tiny_model("lfm3"), without=without))
    logged = [record.getMessage() for record in caplog.records if record.getMessage().startswith("shortcut ")]
    assert logged == policy.shortcuts.lines()
    assert len(logged) == len(NAMES)
    for shortcut in SHORTCUTS:
        reason = SWITCHED_OFF if shortcut.name in without else _reason(shortcut, tiny_model("lfm3"))
        expected = "used" if reason is None else f"not used: {reason}"
        assert f"shortcut {shortcut.name}: {expected}" in logged


def _reason(shortcut: Shortcut, path: str) -> str | None:
    """As for a model in which nothing is installed."""
    if isinstance(shortcut, CompiledLayers):
        return NOT_ASKED_FOR
    return shortcut.why_not(Policy(PolicyConfig(path=path, without=list(NAMES))).eval().lm)


def test_a_trial_that_fails_in_a_different_precision_is_logged_at_that_time(
    tiny_model: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    policy = Policy(PolicyConfig(path=tiny_model("llama")))
    assert "shortcut packed_weights: used" in policy.shortcuts.lines()
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="grpo_lightning"):
        for _ in range(2):
            with torch.autocast("cpu", torch.float16), policy.rollout_mode():
                assert not policy.shortcuts.uses(packed.PackedWeights)
    changed = "shortcut packed_weights: not used: it is for float32 and bfloat16, not float16"
    assert [record.getMessage() for record in caplog.records] == [changed]
    with policy.rollout_mode():
        assert policy.shortcuts.uses(packed.PackedWeights)


def test_gradient_checkpointing_is_a_reason(model_path: str) -> None:
    lines = Policy(PolicyConfig(path=model_path, gradient_checkpointing=True)).shortcuts.lines()
    reason = "gradient checkpointing drops the cache that rows continue from"
    assert f"shortcut shared_prompts: not used: {reason}" in lines


def test_an_unknown_name_is_rejected_with_a_list_of_all_names() -> None:
    with pytest.raises(ConfigError, match="packed_weigths is not a shortcut: choose from") as error:
        PolicyConfig(path="any", without=["packed_weigths"]).validate()
    assert all(name in str(error.value) for name in NAMES)


def test_names_are_unique_and_documented() -> None:
    assert len(set(NAMES)) == len(NAMES)
    page = (Path(__file__).parents[2] / "docs/performance.md").read_text()
    assert all(f"`{name}`" in page for name in NAMES)
    assert all(type(shortcut).__doc__ for shortcut in SHORTCUTS)
