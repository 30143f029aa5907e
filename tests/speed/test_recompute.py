"""Activations recomputed in the backward pass: the same numbers and gradients, and less memory."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GemmaConfig, PreTrainedModel
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig
from grpo_lightning.speed.recompute import (
    GatedFeedForward,
    Norm,
    _Kept,
    _RMSNorm,
    _SiluTimes,
    install_recomputing_layers,
    recompute_in_backward,
)
from tests.tiny import tiny_config

IDS = torch.tensor([[1, 30, 40, 50, 60, 70], [1, 61, 62, 63, 64, 65]])


def model_of(kind: str, dtype: torch.dtype = torch.float64, **changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **changes)).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.25)
    return model


def passed(model: PreTrainedModel, around: AbstractContextManager[None]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the hidden states, and all gradients of a weighted sum of them."""
    model.zero_grad()
    with around:
        hidden_NLD = model.get_decoder()(input_ids=IDS, use_cache=False).last_hidden_state
    (hidden_NLD * torch.linspace(-1, 1, hidden_NLD.numel()).view_as(hidden_NLD).to(hidden_NLD)).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return hidden_NLD.detach(), found


@pytest.mark.parametrize("kind", ["llama", "lfm2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_and_gradients_equal_those_of_the_unchanged_model(kind: str, dtype: torch.dtype) -> None:
    plain = model_of(kind, dtype)
    turned = copy.deepcopy(plain)
    install_recomputing_layers(turned)
    hidden, gradients = passed(plain, nullcontext())
    own_hidden, own_gradients = passed(turned, recompute_in_backward(turned))
    tolerance = 1e-5 if dtype is torch.float32 else 0.03
    assert own_gradients.keys() == gradients.keys()
    for name, expected in {"hidden": hidden, **gradients}.items():
        found = {"hidden": own_hidden, **own_gradients}[name]
        assert (found - expected).float().norm() <= tolerance * expected.float().norm(), name


@pytest.mark.parametrize("kind", ["llama", "lfm2"])
def test_recomputing_changes_no_gradient(kind: str) -> None:
    model = model_of(kind)
    install_recomputing_layers(model)
    hidden, gradients = passed(model, nullcontext())
    own_hidden, own_gradients = passed(model, recompute_in_backward(model))
    assert torch.equal(own_hidden, hidden)
    assert all(torch.equal(own_gradients[name], gradients[name]) for name in gradients)


def test_the_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    x, other = (torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weight: _RMSNorm.apply(x, weight, 1e-5)[0], (x, weight))
    assert torch.autograd.gradcheck(_SiluTimes.apply, (x, other))


@pytest.mark.parametrize("kind", ["llama", "lfm2"])
def test_all_norms_and_feed_forward_layers_of_known_models_are_replaced(kind: str) -> None:
    model = model_of(kind, torch.float32)
    install_recomputing_layers(model)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(GatedFeedForward) == model.config.num_hidden_layers
    assert kinds.count(Norm) >= 2 * model.config.num_hidden_layers + 1
    assert not any("RMSNorm" in kind.__name__ or "MLP" in kind.__name__ for kind in kinds)


def test_layers_that_compute_something_else_are_not_replaced() -> None:
    gelu = model_of("llama", torch.float32, hidden_act="gelu")
    install_recomputing_layers(gelu)
    assert not any(isinstance(module, GatedFeedForward) for module in gelu.modules())
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    gemma = AutoModelForCausalLM.from_config(
        GemmaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, head_dim=8)
    )
    install_recomputing_layers(gemma)
    assert any(isinstance(module, GemmaRMSNorm) for module in gemma.modules())

    class Shifted(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states) + 1

    class Gated(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor, gate: Tensor) -> Tensor:
            return super().forward(hidden_states) * gate

    others = nn.Sequential(Shifted(8), Gated(8))
    install_recomputing_layers(others)
    assert [type(module) for module in others] == [Shifted, Gated]


def peak_bytes(run: Callable[[], None]) -> int:
    """Return the peak of torch's allocator during a run, in bytes above its start."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    held = peak = 0
    for _, change in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        held += change
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("lora", [False, True])
def test_the_memory_of_a_pass_is_smaller(model_path: str, lora: bool) -> None:
    def run(around: Callable[[nn.Module], AbstractContextManager[None]]) -> int:
        adapter = LoRAConfig(r=4, alpha=8) if lora else None
        policy = Policy(PolicyConfig(path=model_path, lora=adapter, dtype="bfloat16" if lora else "float32"))

        def forward_and_backward() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=lora), around(policy.lm):
                hidden = policy.lm.get_decoder()(input_ids=IDS.repeat(40, 10), use_cache=False).last_hidden_state
            hidden.float().sum().backward()

        return peak_bytes(forward_and_backward)

    assert run(recompute_in_backward) < 0.85 * run(lambda lm: nullcontext())


def test_skipping_casts_changes_no_value_under_autocast(model_path: str) -> None:
    policy = Policy(PolicyConfig(path=model_path, lora=LoRAConfig(r=4, alpha=8), dtype="bfloat16"))
    torch.manual_seed(1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    found = []
    for around in (recompute_in_backward, lambda lm: nullcontext()):
        policy.zero_grad()
        with torch.autocast("cpu", torch.bfloat16), around(policy.lm):
            hidden = policy.lm.get_decoder()(input_ids=IDS, use_cache=False).last_hidden_state
        hidden.float().sum().backward()
        found.append([hidden.detach(), *(parameter.grad.clone() for parameter in policy.trainable_parameters())])
    assert all(torch.equal(own, plain) for own, plain in zip(*found, strict=True))
    hidden = policy.lm.get_decoder()(input_ids=IDS, use_cache=False).last_hidden_state
    assert hidden.isfinite().all(), "without autocast the casts are needed, and are back"


def test_a_recipe_ends_with_its_result() -> None:
    kept, result = _Kept(), torch.ones(4)
    kept.add(result, lambda: torch.ones(4))
    packed = kept.pack(result.view(2, 2))
    assert not isinstance(packed, Tensor)
    assert torch.equal(packed(), torch.ones(2, 2))
    assert kept.pack(result[:2]) is not None
    assert isinstance(kept.pack(result[:2]), Tensor), "a part of it is kept"
    changed = torch.ones(4)
    kept.add(changed, lambda: torch.ones(4))
    changed.mul_(2)
    assert kept.pack(changed) is changed, "what it holds now cannot be computed again"
    storage = result.untyped_storage()
    del result
    gc.collect()
    other = torch.empty(0).set_(storage)
    assert kept.pack(other) is other, "its memory may be another's by now"
