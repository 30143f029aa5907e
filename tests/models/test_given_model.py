"""A model object as the policy: trained in place, and resumed bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from grpo_lightning import GRPOModule
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import LoRAConfig, PolicyConfig
from grpo_lightning.speed.registry import NAMES
from tests.toy import LetterVerifier, adam, fit, rollouts, trainer

LORA = LoRAConfig(r=2)


def model_at(path: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def module_of(policy: Any) -> GRPOModule:
    return GRPOModule(policy, LetterVerifier(), optimizer=adam, beta=0.1)


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "lora"])
def test_it_is_trained_as_a_path_is_and_resumed_bit_for_bit(
    tiny_model: Callable[[str], str], tmp_path: Path, lora: LoRAConfig | None
) -> None:
    path = tiny_model("llama")

    def given() -> PolicyConfig:
        return PolicyConfig.from_model(model_at(path), AutoTokenizer.from_pretrained(path), lora=lora)

    whole = fit(tmp_path, module_of(given()), 4)
    assert_same(whole, fit(tmp_path, module_of(PolicyConfig(path=path, lora=lora)), 4))

    first, run = module_of(given()), trainer(tmp_path, 2)
    pl.seed_everything(0, verbose=False)
    run.fit(first, datamodule=rollouts())
    run.save_checkpoint(tmp_path / "two.ckpt")
    assert_same(whole, fit(tmp_path, module_of(given()), 4, ckpt_path=str(tmp_path / "two.ckpt")))

    loaded = GRPOModule.load_from_checkpoint(tmp_path / "two.ckpt", policy=given(), verifiers=LetterVerifier())
    assert_same(dict(loaded.policy.model.named_parameters()), dict(first.policy.model.named_parameters()))


def test_the_object_itself_is_trained_and_the_tokenizer_is_not_touched(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    model, tokenizer = model_at(tiny_model("llama")), AutoTokenizer.from_pretrained(tiny_model("llama"))
    before, template = model.get_output_embeddings().weight.clone(), tokenizer.chat_template
    module = module_of((model, tokenizer))
    fit(tmp_path, module, 2)
    assert module.policy.lm is model
    assert not torch.equal(model.get_output_embeddings().weight, before)
    assert tokenizer.chat_template == template
    assert module.policy.tokenizer is not tokenizer


def test_what_is_frozen_stays_so_in_the_update_the_checkpoint_the_resumed_run_and_the_export(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    path = tiny_model("llama")

    def frozen(model: PreTrainedModel) -> list[torch.nn.Parameter]:
        return [*model.get_input_embeddings().parameters(), *model.model.layers[0].parameters()]

    def given(without: Sequence[str] = ()) -> GRPOModule:
        model = model_at(path)
        for parameter in frozen(model):
            parameter.requires_grad_(False)
        return module_of(PolicyConfig.from_model(model, AutoTokenizer.from_pretrained(path), without=list(without)))

    module, run = given(), trainer(tmp_path, 2)
    pl.seed_everything(0, verbose=False)
    run.fit(module, datamodule=rollouts())
    run.save_checkpoint(tmp_path / "two.ckpt")
    module.policy.save_pretrained(tmp_path / "export")
    start, trained, exported = model_at(path), module.policy.lm, model_at(str(tmp_path / "export"))
    assert all(map(torch.equal, frozen(trained), frozen(start)))
    assert not torch.equal(trained.model.norm.weight, start.model.norm.weight)
    assert_same(trained.state_dict(), exported.state_dict())
    names = set(torch.load(tmp_path / "two.ckpt", weights_only=True)["state_dict"])
    assert names == {name for name, p in module.named_parameters() if p.requires_grad}
    assert not [name for name in names if "embed_tokens" in name or "layers.0." in name]

    whole = fit(tmp_path, given(), 3)
    assert_same(whole, fit(tmp_path, given(), 3, ckpt_path=str(tmp_path / "two.ckpt")))
    for name, weight in fit(tmp_path, given(sorted(NAMES)), 3).items():
        torch.testing.assert_close(weight, whole[name], atol=1e-4, rtol=1e-4)


def test_a_model_alone_has_the_tokenizer_of_its_path(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    module = module_of(model_at(tiny_model("llama")))
    fit(tmp_path, module, 1)
    assert module.policy.tokenizer.name_or_path == tiny_model("llama")
    assert module.policy_config.dtype == "float32"


def test_what_cannot_be_trained_is_refused(tiny_model: Callable[[str], str]) -> None:
    model = model_at(tiny_model("llama"))
    module_of(PolicyConfig.from_model(model, lora=LORA)).configure_model()
    for policy in (model, torch.nn.Linear(2, 2), 3):
        with pytest.raises(ConfigError, match=r"not (LlamaForCausalLM|Linear|int): for one"):
            module_of(policy)
    nameless = type(model)(model.config)
    nameless.name_or_path = nameless.config._name_or_path = ""
    with pytest.raises(ConfigError, match=r"give \(model, tokenizer\)"):
        module_of(nameless)
