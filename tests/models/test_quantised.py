"""A 4-bit base under LoRA: what is loaded, trained, planned and exported, on real bitsandbytes layers on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from grpo_lightning.callbacks import HealthCheck, PolicyExport, RunCheckpoint
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig
from grpo_lightning.models.checks import causal_lm_of
from grpo_lightning.models.loading import load_frozen
from grpo_lightning.models.quantised import unpacked
from grpo_lightning.rollout import SamplingParams
from grpo_lightning.rollout.batch import token_rows
from grpo_lightning.rollout.engines.vllm.engine import VLLMEngine
from tests.algorithms.test_ppo import ppo
from tests.sampling import generate
from tests.tiny import save_tiny_model
from tests.toy import Watch, fit, grpo, llama_alone, needs_bitsandbytes, rollouts, same, sgd

LORA = LoRAConfig(r=4, alpha=8)
# NormalFloat's 16 values (QLoRA, arXiv 2305.14314, appendix E).
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


@pytest.fixture(scope="module", params=["llama", "lfm2"])
def model_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """As that of all tests, but with columns that bitsandbytes unpacks correctly on a CPU: see below."""
    return save_tiny_model(tmp_path_factory.mktemp(request.param), request.param, hidden_size=64, intermediate_size=128)


def qlora(path: str, **options: Any) -> Policy:
    """A policy over 4-bit weights, with an adapter that does something."""
    torch.manual_seed(0)
    policy = Policy(PolicyConfig(**{"path": path, "lora": LORA, "quantization": "nf4"} | options))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return policy


def quick(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.1)


def layers(policy: Policy) -> Iterator[tuple[str, Any]]:
    return (
        (name, layer)
        for name, layer in policy.lm.named_modules()
        if hasattr(getattr(layer, "weight", 0), "quant_state")
    )


def logprobs(policy: Policy) -> torch.Tensor:
    tokens = token_rows([[1, 40, 50], [1, 60]], [[30, 31, 32, 7], [33, 34, 7]], 0)
    with torch.no_grad():
        return policy.logprobs(tokens)[0]


def frozen(policy: Policy) -> dict[str, torch.Tensor]:
    """All that is not trained, the scales of 4-bit weights too."""
    return {name: tensor.clone() for name, tensor in policy.lm.state_dict().items() if ".lora_" not in name}


@needs_bitsandbytes
def test_a_weight_is_a_value_of_nf4_times_the_scale_of_its_block(model_path: str) -> None:
    plain = AutoModelForCausalLM.from_pretrained(model_path)
    count = 0
    for name, layer in layers(qlora(model_path)):
        if not name.endswith(".base_layer"):
            continue
        count += 1
        weight = plain.get_parameter(name.removesuffix(".base_layer") + ".weight").detach()
        found = unpacked(layer).view(-1, 64)
        scale = weight.view(-1, 64).abs().amax(1, keepdim=True)
        # Two weights to a byte, the first in its upper half.
        packed = layer.weight.view(-1).long()
        codes = torch.stack([packed >> 4, packed & 15], 1).view(-1, 64)
        values = torch.tensor(NF4)
        nearest = (weight.view(-1, 64, 1) / scale[..., None] - values).abs().argmin(-1)
        assert (codes != nearest).float().mean() < 1e-3  # halfway between two
        # Double quantisation rounds the scales to 8 bits.
        torch.testing.assert_close(found, values[codes] * scale, rtol=0.02, atol=1e-3)
    assert count == (2 * 7 if "llama" in model_path else 2 * 2 + 4 + 3 * 3)


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_forward_pass_is_that_of_the_unpacked_weights(model_path: str, dtype: str, tmp_path: Path) -> None:
    policy = qlora(model_path, dtype=dtype)
    before = frozen(policy)
    policy.save_pretrained(tmp_path, merged=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == dtype
    plain = Policy(PolicyConfig(path=str(tmp_path), dtype=dtype))
    bound = 1e-4 if dtype == "float32" else 0.3
    torch.testing.assert_close(logprobs(policy), logprobs(plain), atol=bound, rtol=bound)
    assert not torch.allclose(logprobs(plain), logprobs(Policy(PolicyConfig(path=model_path, dtype=dtype))), atol=1e-2)
    assert same(before, frozen(policy))


@needs_bitsandbytes
def test_rollouts_are_those_of_the_plain_way_and_of_the_merged_weights(model_path: str, tmp_path: Path) -> None:
    policy = qlora(model_path)
    policy.save_pretrained(tmp_path, merged=True)
    decoding = ["direct_decoding", "packed_weights", "recomputed_activations", "shared_prompts"]
    policies = [policy, qlora(model_path, without=decoding), Policy(PolicyConfig(path=str(tmp_path)))]
    assert "shortcut direct_decoding: used" in policy.shortcuts.lines()
    greedy = SamplingParams(temperature=0.0, max_new_tokens=12)
    sampled = [generate(each, [[1, 40, 50], [1, 60]], 1, greedy, [0, 1]) for each in policies]
    ids = [[completion.token_ids for completion in completions] for completions in sampled]
    assert ids[0] == ids[1] == ids[2]
    base = qlora(model_path)
    for parameter in base.trainable_parameters():
        parameter.data.zero_()
    assert [one.token_ids for one in generate(base, [[1, 40, 50], [1, 60]], 1, greedy, [0, 1])] != ids[0]


@needs_bitsandbytes
def test_a_run_learns_leaves_the_base_and_samples_from_what_it_trains(model_path: str, tmp_path: Path) -> None:
    module, watch = grpo(model_path, lora=LORA, quantization="nf4", optimizer=quick), Watch()
    torch.manual_seed(0)
    module.configure_model()
    before = frozen(module.policy)
    fit(tmp_path, module, 14, callbacks=[watch, HealthCheck()])
    assert same(before, frozen(module.policy))
    rewards = [logged["reward/mean"] for logged in watch.logged]
    assert sum(rewards[-2:]) > sum(rewards[:2]) + 0.3
    assert 0 < max(logged["policy/sampler_gap"] for logged in watch.logged) < 1e-5
    saved = {name: p for name, p in module.named_parameters() if p.requires_grad}
    module.trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert set(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]) == set(saved)


@needs_bitsandbytes
@llama_alone
def test_a_resumed_run_repeats_the_uninterrupted_one(model_path: str, tmp_path: Path) -> None:
    def run(folder: Path, steps: int, **options: Any) -> dict[str, torch.Tensor]:
        module = grpo(model_path, lora=LORA, quantization="nf4", beta=0.02)
        return fit(folder, module, steps, callbacks=[RunCheckpoint()], enable_checkpointing=True, **options)

    whole = run(tmp_path / "whole", 3)
    run(tmp_path / "part", 2)
    assert same(whole, run(tmp_path / "part", 3, ckpt_path=tmp_path / "part/checkpoints/last.ckpt"))


@needs_bitsandbytes
@llama_alone
@pytest.mark.parametrize("critic", ["adapter", "separate"])
def test_a_critic_stands_on_4_bit_weights_too(model_path: str, critic: str, tmp_path: Path) -> None:
    module = ppo(model_path, lora=LORA, quantization="nf4", critic=critic)
    trained = fit(tmp_path, module, 2)
    assert any("critic" in name or ".value." in name for name in trained)
    assert all(tensor.isfinite().all() for tensor in trained.values())


@needs_bitsandbytes
@llama_alone
@pytest.mark.parametrize("merged", [False, True])
def test_an_exported_folder_says_what_its_weights_are(
    model_path: str, merged: bool, tmp_path: Path, caplog: Any
) -> None:
    caplog.set_level("INFO")
    module = grpo(model_path, lora=LORA, quantization="nf4")
    fit(tmp_path, module, 1, callbacks=[PolicyExport(merged=merged)])
    card = (tmp_path / "policy/README.md").read_text()
    if merged:
        assert "| weights | unpacked from 4 bits to float32, with the adapter merged in; not quantised |" in card
        assert "policy: unpacked from 4 bits to float32" in caplog.text
        return
    assert "| weights | trained over the base in 4 bits (bitsandbytes)" in card
    adapter = json.loads((tmp_path / "policy/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == model_path
    caplog.clear()
    again = Policy(PolicyConfig(path=str(tmp_path / "policy"), quantization="nf4"))
    assert torch.equal(logprobs(again), logprobs(module.policy))
    noted = (
        "was trained over its base in 4 bits, and fits the full weights less well: for a policy, "
        "set model.policy.quantization to nf4"
    )
    assert noted not in caplog.text
    Policy(PolicyConfig(path=str(tmp_path / "policy")))
    assert noted in caplog.text


@needs_bitsandbytes
@llama_alone
def test_two_processes_learn_what_one_does(model_path: str, tmp_path: Path) -> None:
    found = []
    for devices in (1, 2):
        parallel = {"devices": devices, "strategy": "ddp_fork"} if devices > 1 else {}
        folder = tmp_path / str(devices)
        module = grpo(model_path, lora=LORA, quantization="nf4", beta=0.02, optimizer=sgd)
        saves = {"callbacks": [RunCheckpoint()], "enable_checkpointing": True}
        fit(folder, module, 2, rollouts(prompts_per_step=4), **saves, **parallel)
        found.append(torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"])
    assert found[0].keys() == found[1].keys()
    assert any(tensor.norm() > 1e-3 for name, tensor in found[0].items() if "lora_B" in name)
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, atol=1e-5, rtol=1e-3)


# -- folders that are quantised already -------------------------------------------------------------------------------


def quantised_folder(path: str, folder: Path, **options: Any) -> str:
    config = BitsAndBytesConfig(load_in_4bit=True, **options)
    AutoModelForCausalLM.from_pretrained(path, quantization_config=config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(path).save_pretrained(folder)
    return str(folder)


@needs_bitsandbytes
def test_a_quantised_folder_is_the_model_quantised_while_loading(model_path: str, tmp_path: Path) -> None:
    folder = quantised_folder(model_path, tmp_path, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    assert torch.equal(logprobs(qlora(folder, quantization=None)), logprobs(qlora(model_path)))
    given = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    policy = Policy(PolicyConfig.from_model(given, AutoTokenizer.from_pretrained(folder), lora=LORA))
    assert policy.is_quantised


@needs_bitsandbytes
@llama_alone
def test_an_adapter_of_a_model_that_is_read_is_not_merged_into_4_bits(model_path: str, tmp_path: Path) -> None:
    base = quantised_folder(model_path, tmp_path / "base", bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    policy = qlora(base, quantization=None)
    policy.save_pretrained(tmp_path / "adapter")
    lm = causal_lm_of(load_frozen(PolicyConfig(path=str(tmp_path / "adapter")), None, "model.teacher.path"))
    ids = torch.tensor([[1, 40, 50, 30, 31]])
    with torch.no_grad():
        torch.testing.assert_close(lm(input_ids=ids).logits, policy.lm(input_ids=ids).logits)
    assert not any(parameter.requires_grad for parameter in lm.parameters())


@needs_bitsandbytes
@llama_alone
def test_the_arithmetic_is_in_the_dtype_of_the_policy_whatever_the_folder_says(model_path: str, tmp_path: Path) -> None:
    stored = {"bnb_4bit_compute_dtype": torch.float16, "bnb_4bit_quant_storage": torch.bfloat16}
    policy = qlora(quantised_folder(model_path, tmp_path, bnb_4bit_quant_type="fp4", **stored), quantization=None)
    for _, layer in layers(policy):
        assert unpacked(layer).dtype == torch.float32
    policy.save_pretrained(tmp_path / "merged", merged=True)
    plain = Policy(PolicyConfig(path=str(tmp_path / "merged")))
    torch.testing.assert_close(logprobs(policy), logprobs(plain), atol=1e-4, rtol=1e-4)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"quantization": "nf4"}, "model.policy.quantization: nf4 weights are frozen: add model.policy.lora"),
        ({"quantization": "nf4", "lora": LORA, "init": "random"}, "use init pretrained"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        PolicyConfig(path="anywhere", **options).validate()


@pytest.mark.parametrize(
    ("config", "options", "text"),
    [
        ({"load_in_4bit": True}, {}, r"are quantised \(bitsandbytes\), so they stay frozen: add model.policy.lora"),
        ({"load_in_4bit": True}, {"lora": LORA, "quantization": "nf4"}, "already: omit model.policy.quantization"),
        ({"load_in_8bit": True}, {"lora": LORA}, "only 4-bit weights of bitsandbytes are supported"),
    ],
)
def test_quantised_folders_that_cannot_be_trained_over_are_refused_before_they_are_read(
    tiny_model: Callable[[str], str], tmp_path: Path, config: dict[str, Any], options: dict[str, Any], text: str
) -> None:
    AutoTokenizer.from_pretrained(tiny_model("llama")).save_pretrained(tmp_path)
    quantised = {"quantization_config": {"quant_method": "bitsandbytes"} | config}
    (tmp_path / "config.json").write_text(
        json.dumps(json.loads((Path(tiny_model("llama")) / "config.json").read_text()) | quantised)
    )
    with pytest.raises(ConfigError, match=text):
        fit(tmp_path, grpo(str(tmp_path), **options), 1)


def test_without_the_package_a_run_ends_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    monkeypatch.setattr("grpo_lightning.models.quantised.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"nf4 weights need bitsandbytes: pip install 'grpo-lightning\[quantised\]'"):
        fit(tmp_path, grpo(tiny_model("llama"), lora=LORA, quantization="nf4"), 1)


@needs_bitsandbytes
def test_without_kernels_a_run_ends_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such symbol:\n  quantize")

    monkeypatch.setattr("bitsandbytes.functional.quantize_4bit", missing)
    with pytest.raises(ConfigError, match=r"does not run on .* here .RuntimeError: no such symbol: quantize.") as error:
        fit(tmp_path, grpo(tiny_model("llama"), lora=LORA, quantization="nf4"), 1)
    assert "\n" not in str(error.value)


@needs_bitsandbytes
def test_weights_that_bitsandbytes_unpacks_to_wrong_values_are_refused(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[[str], str]
) -> None:
    """Its kernel for some CPUs takes every row to begin a block of 64. Other CPUs are made to be wrong here."""
    from bitsandbytes import functional

    right = functional.dequantize_4bit
    monkeypatch.setattr(functional, "dequantize_4bit", lambda *args, **options: right(*args, **options).roll(1, 0))
    with pytest.raises(ConfigError, match="unpacks 4-bit weights with 32 columns to wrong values on cpu"):
        qlora(tiny_model("llama"))


def test_servers_get_the_unpacked_weights_or_the_run_is_refused(tmp_path: Path) -> None:
    policy = PolicyConfig(path="anywhere", lora=LORA, quantization="nf4")
    with pytest.raises(ConfigError, match="set it to true, and the servers get the unpacked weights"):
        VLLMEngine(["http://127.0.0.1:1"], str(tmp_path)).check(policy, 10, None)
