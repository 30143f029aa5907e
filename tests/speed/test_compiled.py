"""Compiled layers: what is compiled anew, what a compiler that fails leads to, and inductor itself.

``test_shortcuts.py`` compares them with plain layers on every model shape.
"""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from grpo_lightning.models import Policy, PolicyConfig
from grpo_lightning.speed import compiled
from grpo_lightning.types import TokenRows


class Backend:
    """Runs what was captured; counts how often it is asked to, and fails on request."""

    def __init__(self) -> None:
        self.asked = 0
        self.fails = False

    def __call__(self, graph: Any, inputs: Any) -> Any:
        if self.fails:
            raise RuntimeError("no C++ here\nmore of it")
        self.asked += 1
        return graph.forward


def rows(number: int, length: int) -> TokenRows:
    ids_NL = torch.arange(number * length).view(number, length) % 251
    return TokenRows(ids_NL, torch.full((number,), 3), torch.full((number,), length - 3))


def learn(policy: Policy, tokens: TokenRows) -> list[torch.Tensor]:
    """The log-probs and the gradients of their sum."""
    policy.zero_grad()
    logprobs_NT = policy.logprobs(tokens)[0]
    logprobs_NT.sum().backward()
    return [logprobs_NT.detach(), *(parameter.grad.clone() for parameter in policy.parameters())]


def policies(path: str) -> tuple[Policy, Policy]:
    """A policy whose layers are compiled, and one whose layers are not."""
    return Policy(PolicyConfig(path, compile=True)), Policy(PolicyConfig(path))


def check(policy: Policy, plain: Policy, tokens: TokenRows) -> None:
    for found, expected in zip(learn(policy, tokens), learn(plain, tokens), strict=True):
        assert (found - expected).norm() <= 1e-4 * expected.norm()


SHARED = Backend()
"""One for all tests: what it has compiled serves further policies of the same architecture."""


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    monkeypatch.setattr(compiled, "BACKEND", SHARED)
    yield SHARED
    SHARED.fails = False


def test_layers_of_a_kind_are_compiled_once_per_form_of_a_pass(
    tiny_model: Callable[[str], str], backend: Backend
) -> None:
    policy, plain = policies(tiny_model("llama"))
    assert len(policy.lm.get_decoder().layers) == 2
    assert backend.asked == 3  # rows, prefixes, and what follows prefixes
    for tokens in (rows(4, 13), rows(2, 21)):
        check(policy, plain, tokens)
    with torch.no_grad():
        policy.logprobs(rows(1, 7))  # a form that would be compiled if it learned
    assert backend.asked == 3
    assert "shortcut compiled_layers: used" in policy.shortcuts.lines()


def test_a_copy_runs_its_own_weights_and_a_compiler_that_fails_later_leads_to_the_plain_pass(
    tiny_model: Callable[[str], str], backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    policy, plain = policies(tiny_model("llama"))
    assert backend.asked <= 3, "nothing is compiled again for another policy"
    copied = copy.deepcopy(policy.lm)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    ids_NL = rows(4, 13).ids_NL
    logits_NLV = copied(ids_NL).logits  # with a gradient, so compiled
    torch.testing.assert_close(logits_NLV, plain.lm(ids_NL).logits, atol=1e-4, rtol=1e-4)

    plain.load_state_dict(policy.state_dict())
    backend.fails = True
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="grpo_lightning"):
        check(policy, plain, rows(1, 7))  # one row would be compiled anew
        check(policy, plain, rows(4, 13))
    logged = "shortcut compiled_layers: not used: a layer cannot be compiled (no C++ here)"
    said = [record.getMessage() for record in caplog.records if record.name.startswith("grpo_lightning")]
    assert said == [logged]
    assert logged in policy.shortcuts.lines()
    calls = backend.asked
    Policy(PolicyConfig.from_model(policy.lm, compile=False)).logprobs(rows(1, 9))
    assert backend.asked == calls, "a model that was compiled before runs as it is"


def test_a_compiler_that_fails_when_the_model_loads_is_a_reason(
    tiny_model: Callable[[str], str], backend: Backend
) -> None:
    backend.fails = True
    policy = Policy(PolicyConfig(tiny_model("qwen3"), compile=True))
    reason = "Qwen3ForCausalLM cannot be compiled (no C++ here)"
    assert f"shortcut compiled_layers: not used: {reason}" in policy.shortcuts.lines()
    assert "forward" not in vars(policy.lm.get_decoder().layers[0])


def test_gradient_checkpointing_is_a_reason(model_path: str) -> None:
    lines = Policy(PolicyConfig(model_path, compile=True, gradient_checkpointing=True)).shortcuts.lines()
    reason = "gradient checkpointing runs the layers in its own way"
    assert f"shortcut compiled_layers: not used: {reason}" in lines


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU")
def test_inductor_gives_the_same_logprobs_and_gradients(tiny_model: Callable[[str], str]) -> None:
    policy, plain = policies(tiny_model("llama"))
    assert "shortcut compiled_layers: used" in policy.shortcuts.lines()
    check(policy, plain, rows(4, 13))
