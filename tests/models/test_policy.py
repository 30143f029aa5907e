"""The policy: log-probs, references, adapters, terminators, export, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig, HyperCLOVAXConfig, OpenAIGPTConfig, OPTConfig

from grpo_lightning.errors import ConfigError
from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig
from grpo_lightning.models.merging import dithered
from grpo_lightning.models.positions import check_length
from grpo_lightning.models.reference import AdapterOffReference
from grpo_lightning.models.tokenizer import encode_completion, encode_prompt, load_tokenizer
from grpo_lightning.rollout.batch import token_rows
from grpo_lightning.types import TokenRows
from tests.rollout.test_in_process import transformers_greedy, with_adapter
from tests.tiny import save_tiny_model, tiny_tokenizer

PROMPTS = [[1, 30, 40, 50], [1, 60, 61, 62, 63, 64, 65, 66], [1, 90]]
COMPLETIONS = [[100, 101, 7], [110, 111, 112, 113, 114], [120, 7]]


def rows(pad: int = 0) -> TokenRows:
    return token_rows(PROMPTS, COMPLETIONS, pad)


def naive_logprobs(lm: torch.nn.Module, temperature: float = 1.0) -> list[torch.Tensor]:
    """Row by row, without padding, from the model's own full logits."""
    out = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        logits = lm(input_ids=torch.tensor([prompt + completion])).logits[0].float() / temperature
        predicted = logits[len(prompt) - 1 : -1].log_softmax(-1)
        out.append(predicted.gather(-1, torch.tensor(completion)[:, None])[:, 0])
    return out


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_equal_the_naive_ones_row_by_row(model_path: str, temperature: float) -> None:
    policy = with_adapter(model_path)
    logprobs_NT, entropy_NT = policy.logprobs(rows(), temperature)
    for row, expected in enumerate(naive_logprobs(policy.lm, temperature)):
        torch.testing.assert_close(logprobs_NT[row, : len(expected)], expected, atol=1e-5, rtol=1e-5)
        assert (logprobs_NT[row, len(expected) :] == 0).all()
        assert (entropy_NT[row, : len(expected)] > 0).all()


def test_padding_changes_nothing(model_path: str) -> None:
    policy = Policy(PolicyConfig(path=model_path))
    plain, other = policy.logprobs(rows())[0], policy.logprobs(rows(pad=99))[0]
    assert torch.equal(plain, other)
    # A longer row beside it widens the padding of the others; nothing else.
    alone = policy.logprobs(rows().select(torch.tensor([2])))[0]
    torch.testing.assert_close(alone[0], plain[2, :2], atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradient(model_path: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        policy = Policy(PolicyConfig(path=model_path, lora=LoRAConfig(r=4), gradient_checkpointing=checkpointing))
        if checkpointing:
            assert policy.lm.is_gradient_checkpointing
        policy.logprobs(rows())[0].sum().backward()
        gradients.append([parameter.grad for parameter in policy.trainable_parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


# -- references -------------------------------------------------------------------------------------------------------


def test_the_lora_reference_is_the_base_model(model_path: str) -> None:
    base = AutoModelForCausalLM.from_pretrained(model_path)
    policy = with_adapter(model_path)
    policy.reference = AdapterOffReference(policy.model)
    reference, _ = policy.logprobs(rows(), reference=True)
    for row, expected in enumerate(naive_logprobs(base)):
        torch.testing.assert_close(reference[row, : len(expected)], expected, atol=1e-5, rtol=1e-5)
    own, _ = policy.logprobs(rows())
    assert (own - reference).abs().max() > 0.01
    assert own.requires_grad
    assert not reference.requires_grad
    assert all(parameter.requires_grad for name, parameter in policy.named_parameters() if "lora_" in name)


@pytest.mark.parametrize(
    ("config", "loaded", "form"),
    [({}, False, "copy"), ({"lora": LoRAConfig(r=4)}, False, "adapter-off"), ({}, True, "snapshot")],
)
def test_auto_chooses_the_reference_that_is_the_start(
    tiny_model: Callable[[str], str], tmp_path: Path, config: dict, loaded: bool, form: str
) -> None:
    path = tiny_model("lfm2")
    if loaded:
        with_adapter(path).save_pretrained(tmp_path)
        path = str(tmp_path)
    policy = Policy(PolicyConfig(path=path, **config), with_reference=True)
    assert policy.reference.form == form
    start = policy.logprobs(rows())[0].detach()
    trainable = policy.trainable_parameters()
    with torch.no_grad():
        for parameter in trainable:
            parameter.add_(0.1)
    moved = policy.logprobs(rows())[0].detach()
    torch.testing.assert_close(policy.logprobs(rows(), reference=True)[0], start)
    assert (moved - start).abs().max() > 0.01
    assert [id(p) for p in policy.trainable_parameters()] == [id(p) for p in trainable]


def test_without_a_kl_no_reference_is_kept(model_path: str) -> None:
    policy = Policy(PolicyConfig(path=model_path))
    assert policy.reference.form == "none"
    with pytest.raises(RuntimeError, match="keeps no reference"):
        policy.logprobs(rows(), reference=True)


# -- loading ----------------------------------------------------------------------------------------------------------


def test_adapters_are_float32_over_a_bfloat16_base_and_reach_every_linear_layer(
    tiny_model: Callable[[str], str],
) -> None:
    policy = Policy(PolicyConfig(path=tiny_model("lfm2"), dtype="bfloat16", lora=LoRAConfig(r=4)))
    dtypes = {"lora_" in name: parameter.dtype for name, parameter in policy.named_parameters()}
    assert dtypes == {False: torch.bfloat16, True: torch.float32}
    adapted = {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in policy.named_parameters() if "lora_A" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w2", "w3"}
    few = Policy(PolicyConfig(path=tiny_model("lfm2"), lora=LoRAConfig(r=4, target_modules=["q_proj"])))
    assert len(few.trainable_parameters()) == 2


def test_terminators_are_the_union_and_the_templates_comes_first(model_path: str) -> None:
    assert Policy(PolicyConfig(path=model_path)).terminators == [7, 2]


def test_a_random_init_takes_the_architecture_alone(model_path: str) -> None:
    torch.manual_seed(3)
    one = Policy(PolicyConfig(path=model_path, init="random"))
    pretrained = Policy(PolicyConfig(path=model_path))
    assert [p.shape for p in one.parameters()] == [p.shape for p in pretrained.parameters()]
    assert not torch.equal(next(one.parameters()), next(pretrained.parameters()))


def test_dropout_is_off_even_while_training(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, "llama", attention_dropout=0.5)
    policy = Policy(PolicyConfig(path=path))
    policy.train()
    assert torch.equal(policy.logprobs(rows())[0], policy.logprobs(rows())[0])


def test_dropout_that_a_model_keeps_as_a_number_is_off_too(tmp_path: Path) -> None:
    config = OPTConfig(
        vocab_size=264, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=32,
        max_position_embeddings=64, dropout=0.3, layerdrop=0.5,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    policy = Policy(PolicyConfig(path=str(tmp_path)))
    policy.train()
    assert torch.equal(policy.logprobs(rows())[0], policy.logprobs(rows())[0])
    check_length(policy.lm, 64)
    with pytest.raises(ConfigError, match=r"up to 65 tokens, but OPTForCausalLM has 64 positions: lower"):
        check_length(policy.lm, 65)


def test_more_tokens_than_a_model_was_made_for_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = Policy(PolicyConfig(path=save_tiny_model(tmp_path / "plain", "llama", max_position_embeddings=32)))
    caplog.clear()
    check_length(plain.lm, 32)
    assert not caplog.records
    check_length(plain.lm, 33)
    assert "up to 33 tokens, more than the 32 positions" in caplog.text
    assert "lower data.max_prompt_tokens or data.sampling.max_new_tokens" in caplog.text
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    path = save_tiny_model(tmp_path / "dynamic", "llama", max_position_embeddings=32, rope_parameters=rope)
    with pytest.raises(ConfigError, match="rope_type: dynamic"):
        check_length(Policy(PolicyConfig(path=path)).lm, 33)


def test_a_model_with_a_dropout_layer_for_attention_loads(tmp_path: Path) -> None:
    config = BloomConfig(vocab_size=264, hidden_size=32, n_layer=1, n_head=2, attention_dropout=0.2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    policy = Policy(PolicyConfig(path=str(tmp_path)))
    policy.train()
    assert torch.equal(policy.logprobs(rows())[0], policy.logprobs(rows())[0])


def test_a_model_without_a_cache_is_refused(tmp_path: Path) -> None:
    config = OpenAIGPTConfig(vocab_size=264, n_embd=32, n_layer=1, n_head=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"\(OpenAIGPTLMHeadModel\) has no transformers cache"):
        Policy(PolicyConfig(path=str(tmp_path)))


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"modules_to_save": ["lm_head"]}, r"holds whole layers or rows \(modules_to_save"),
        ({"trainable_token_indices": [1, 2]}, r"holds whole layers or rows \(trainable_token_indices"),
        ({"use_dora": True}, "is a DoRA"),
        ({"bias": "lora_only"}, "has biases"),
        ({"lora_bias": True}, "has biases"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "repeats layers"),
        ({"peft_type": "IA3"}, "is IA3: give a LoRA adapter"),
    ],
)
def test_an_adapter_that_is_not_a_plain_lora_is_refused(
    tiny_model: Callable[[str], str], tmp_path: Path, option: dict, text: str
) -> None:
    with_adapter(tiny_model("llama")).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | option))
    with pytest.raises(ConfigError, match=rf"model.policy.path: the adapter in \S+ {text}"):
        Policy(PolicyConfig(path=str(tmp_path)))


def test_the_dropout_of_an_adapter_from_disk_is_off_too(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    with_adapter(tiny_model("llama")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"lora_dropout": 0.5}))
    policy = Policy(PolicyConfig(path=str(tmp_path)))
    policy.train()
    assert torch.equal(policy.logprobs(rows())[0], policy.logprobs(rows())[0])


def test_merging_into_bfloat16_keeps_small_updates_on_average(tiny_model: Callable[[str], str]) -> None:
    torch.manual_seed(0)
    base = torch.randn(400, 400).bfloat16().float() * 0.02
    base = base.bfloat16().float()
    delta = torch.randn(400, 400) * 2e-6  # far below half the distance of two neighbours in bfloat16
    plain = (base + delta).bfloat16().float() - base
    merged = dithered(base + delta, torch.bfloat16, seed=1).float() - base
    kept = (merged * delta).sum() / delta.square().sum()
    assert (plain * delta).sum() / delta.square().sum() < 0.5
    assert 0.8 < kept < 1.2
    assert torch.equal(dithered(base, torch.bfloat16, seed=1).float(), base)
    assert torch.equal(dithered(base + delta, torch.float32, seed=1), base + delta)


def test_attention_and_dtype_options_reach_the_model(model_path: str) -> None:
    policy = Policy(PolicyConfig(path=model_path, attn_implementation="eager", dtype="bfloat16"))
    assert policy.lm.config._attn_implementation == "eager"
    assert policy.lm.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"path": "./nowhere"}, "model.policy.path: there is no folder ./nowhere"),
        ({"path": "someone/unknown-model"}, "model.policy.path: there is no folder someone/unknown-model, it is"),
        ({"reference": "adapter-off"}, "model.policy.reference: adapter-off needs LoRA"),
        ({"reference": "copy", "lora": LoRAConfig()}, "model.policy.reference: with LoRA use"),
        ({"lora": LoRAConfig(r=0)}, "model.policy.lora.r: must be at least 1"),
        ({"lora": LoRAConfig(alpha=0)}, "model.policy.lora.alpha: must be at least 1, not 0"),
        ({"lora": LoRAConfig(target_modules=["embed_tokens", "lm_head"])}, "output head"),
        ({"lora": LoRAConfig(target_modules=["nope"])}, r"model.policy.lora.target_modules: \['nope'\] does not fit"),
        ({"attn_implementation": "flash_attention_2"}, "attn_implementation=flash_attention_2"),
    ],
)
def test_bad_options_are_one_sentence_with_their_key(
    tiny_model: Callable[[str], str], options: dict, text: str
) -> None:
    with pytest.raises(ConfigError, match=text) as error:
        Policy(PolicyConfig(**{"path": tiny_model("llama")} | options))
    assert "\n" not in str(error.value)


def test_an_adapter_on_an_embedding_that_is_the_head_is_refused(tmp_path: Path) -> None:
    """Merged it would change the head, which it does not while training."""
    lora = LoRAConfig(r=2, target_modules=["q_proj", "embed_tokens"])
    Policy(PolicyConfig(path=save_tiny_model(tmp_path / "own", "llama", tie_word_embeddings=False), lora=lora))
    path = save_tiny_model(tmp_path / "tied", "llama", tie_word_embeddings=True)
    with pytest.raises(ConfigError, match="the embedding's weight is the output head's too"):
        Policy(PolicyConfig(path=path, lora=lora))


def test_a_model_that_reshapes_its_logits_is_refused(tmp_path: Path) -> None:
    config = HyperCLOVAXConfig(
        vocab_size=264, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, logits_scaling=8.0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="changes its logits after the output head"):
        Policy(PolicyConfig(path=str(tmp_path)))


# -- chats ------------------------------------------------------------------------------------------------------------


def test_prompt_and_completion_together_are_the_rendered_chat(model_path: str) -> None:
    tokenizer = load_tokenizer(model_path)
    user = [{"role": "user", "content": "2 + 2?"}]
    ids = encode_prompt(tokenizer, user) + encode_completion(tokenizer, "4", terminator=7)
    chat = tokenizer.apply_chat_template([*user, {"role": "assistant", "content": "4"}], tokenize=False)
    assert tokenizer.decode(ids) == chat.rstrip("\n")
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_template_of_the_task_takes_the_tokenizers_place(model_path: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(model_path, chat_template="Q: {{ messages[0].content }} A:")
    assert tokenizer.decode(encode_prompt(tokenizer, [{"role": "user", "content": "x"}])) == "Q: x A:"
    bare = tiny_tokenizer()
    bare.chat_template = None
    bare.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"no chat template: give data.task.init_args.chat_template"):
        load_tokenizer(str(tmp_path))


# -- export -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["full", "adapter", "merged"])
def test_the_exported_folder_loads_as_usual_and_generates_the_same(model_path: str, tmp_path: Path, form: str) -> None:
    policy = Policy(PolicyConfig(path=model_path)) if form == "full" else with_adapter(model_path)
    if form == "full":
        with torch.no_grad():
            next(policy.parameters()).add_(0.05)
    policy.save_pretrained(tmp_path, merged=form == "merged")
    if form == "adapter":
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_path), tmp_path)
        assert not list(tmp_path.glob("model*.safetensors"))
    else:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert not (tmp_path / "adapter_config.json").exists()
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == policy.tokenizer.chat_template
    for prompt in PROMPTS:
        ids = loaded.generate(
            input_ids=torch.tensor([prompt]), max_new_tokens=12, do_sample=False,
            eos_token_id=policy.terminators, pad_token_id=0,
        )  # fmt: skip
        assert ids[0, len(prompt) :].tolist() == transformers_greedy(policy, prompt, 12)
    again = Policy(PolicyConfig(path=str(tmp_path)))
    torch.testing.assert_close(again.logprobs(rows())[0], policy.logprobs(rows())[0], atol=1e-5, rtol=1e-5)
