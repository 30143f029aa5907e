"""References as objects: what they are, how they move, and what a checkpoint holds of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig
from grpo_lightning.models.adapters import REFERENCE, VALUE, active_adapter, adapter_parameters, add_adapter
from grpo_lightning.rollout.batch import token_rows
from grpo_lightning.types import TokenRows

FORMS = {"copy": None, "adapter-off": LoRAConfig(r=4), "snapshot": LoRAConfig(r=4)}


def rows() -> TokenRows:
    return token_rows([[1, 30, 40, 50], [1, 90]], [[60, 61, 62], [70, 7]], 0)


def policy_with(path: str, form: str) -> Policy:
    torch.manual_seed(0)
    return Policy(PolicyConfig(path=path, lora=FORMS[form], reference=form), with_reference=True)  # type: ignore[arg-type]


def step(policy: Policy, seed: int = 1) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


def logprobs(policy: Policy, reference: bool = False) -> torch.Tensor:
    return policy.logprobs(rows(), reference=reference)[0].detach()


@pytest.mark.parametrize("form", FORMS)
def test_a_reference_stays_until_it_is_moved(tiny_model: Callable[[str], str], form: str) -> None:
    policy = policy_with(tiny_model("llama"), form)
    start = logprobs(policy)
    step(policy)
    torch.testing.assert_close(logprobs(policy, reference=True), start)
    assert policy.reference_state() == {}
    before = policy.reference
    policy.sync_reference()
    torch.testing.assert_close(logprobs(policy, reference=True), logprobs(policy), atol=0, rtol=0)
    # The base cannot move, so its reference becomes a second adapter.
    assert (policy.reference is before) == (form != "adapter-off")
    assert policy.reference.form == ("snapshot" if form == "adapter-off" else form)
    assert not any(parameter.requires_grad for parameter in policy.reference.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_the_state_of_one_that_has_moved_is_taken_up(tiny_model: Callable[[str], str], form: str) -> None:
    policy = policy_with(tiny_model("llama"), form)
    step(policy)
    policy.sync_reference(alpha=0.5)
    state = {name: tensor.clone() for name, tensor in policy.reference_state().items()}
    again = policy_with(tiny_model("llama"), form)
    again.load_reference_state(state)
    assert torch.equal(logprobs(again, reference=True), logprobs(policy, reference=True))
    assert again.reference_state().keys() == state.keys()
    # The names that checkpoints have had from the first.
    expected = {"copy": "model.norm.weight"}
    name = expected.get(form, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")
    assert name in state


def test_no_reference_ignores_the_state_of_another_run_and_cannot_move(tiny_model: Callable[[str], str]) -> None:
    policy = Policy(PolicyConfig(path=tiny_model("llama")))
    policy.load_reference_state({"model.norm.weight": torch.zeros(1)})
    assert policy.reference.form == "none"
    assert policy.reference_state() == {}
    with pytest.raises(RuntimeError, match="keeps no reference"):
        policy.sync_reference()


def test_a_second_adapter_changes_neither_the_first_nor_what_is_trained(tiny_model: Callable[[str], str]) -> None:
    policy = policy_with(tiny_model("llama"), "snapshot")
    step(policy)
    before = logprobs(policy)
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    add_adapter(policy.model, VALUE, trained=True)
    assert torch.equal(logprobs(policy), before)
    now = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert {name.replace(f".{VALUE}", ".default") for name in now - trained} == trained
    with active_adapter(policy.model, REFERENCE):
        # Policy and critic stay trained while another adapter is active, and the reference stays frozen.
        assert {name for name, parameter in policy.named_parameters() if parameter.requires_grad} == now
    assert not any(parameter.requires_grad for parameter in adapter_parameters(policy.model, REFERENCE))
