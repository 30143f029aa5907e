"""What chat templates and tokenizers lack or refuse: each works, or ends in one sentence."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from grpo_lightning.errors import ConfigError
from grpo_lightning.models import Policy, PolicyConfig
from grpo_lightning.models.templates import PLAIN, complete_template, template_notes
from grpo_lightning.models.tokenizer import encode_completion, encode_prompt, load_tokenizer, terminators
from grpo_lightning.rollout import RolloutDataModule, SamplingParams
from tests.models.family_folders import family_tokenizer, save_family
from tests.toy import ToyTask, fit, grpo, llama_alone, rollouts

SYSTEM, USER = {"role": "system", "content": "S"}, {"role": "user", "content": "U"}
NO_BOS = "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"


def completed(name: str, chat_template: str | None = None, **kwargs: object) -> PreTrainedTokenizerFast:
    tokenizer = family_tokenizer(name)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    complete_template(tokenizer, kwargs)
    return tokenizer


def text_of(tokenizer: PreTrainedTokenizerFast, *chat: dict[str, str]) -> str:
    return tokenizer.decode(encode_prompt(tokenizer, list(chat)))


# -- system turns -----------------------------------------------------------------------------------------------------


def test_the_system_text_joins_the_user_where_a_template_refuses_or_loses_one_of_them() -> None:
    assert "<start_of_turn>user\nS\n\nU<end_of_turn>" in text_of(completed("gemma2"), SYSTEM, USER)
    first_only = "{{ bos_token }}Q: {{ messages[0].content }} A:"
    assert text_of(completed("gemma2", first_only), SYSTEM, USER) == "<bos>Q: S\n\nU A:"
    users_only = "{{ bos_token }}{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    assert text_of(completed("gemma2", users_only), SYSTEM, USER) == "<bos>S\n\nU"


def test_the_log_says_so_where_there_is_a_system_turn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = "the chat template takes no system turn: the system prompt goes into the first user turn"
    assert template_notes(completed("gemma2"), [[USER]]) == []
    task = ToyTask(rows=2)
    task.system_prompt = "Be brief."
    with caplog.at_level(logging.INFO, "grpo_lightning"):
        fit(tmp_path, grpo(save_family(tmp_path, "gemma2")), 1, rollouts(task=task, prompts_per_step=1))
    assert said in caplog.text


def test_a_chat_that_a_template_refuses_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"refuses a chat of the turns user, user \(Conversation roles must") as error:
        encode_prompt(completed("gemma3"), [USER, USER])
    assert "\n" not in str(error.value)


def test_a_template_that_drops_what_users_say_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"does not write the text of a user's turn: give another one as data.task"):
        completed("qwen3", "{% for message in messages %}{{ message.content[0].text }}{% endfor %}")
    needs_system = "{{ messages[0].content + messages[1].content }}"
    assert text_of(completed("qwen3", needs_system), SYSTEM, USER) == "SU"


# -- BOS --------------------------------------------------------------------------------------------------------------


def test_a_bos_that_the_template_omits_is_there_once() -> None:
    tokenizer = completed("gemma3", NO_BOS)
    assert text_of(tokenizer, USER) == "<bos>user: U\n"
    assert any("writes no <bos>" in note for note in template_notes(tokenizer, [[USER]]))
    with_own = completed("gemma3", "{{ bos_token }}" + NO_BOS)
    assert text_of(with_own, USER) == "<bos>user: U\n"
    assert template_notes(with_own, [[USER]]) == []


def test_no_bos_is_added_for_a_tokenizer_that_adds_none() -> None:
    assert text_of(completed("phi3", NO_BOS), USER) == "user: U\n"


def test_a_bos_in_the_data_beside_that_of_the_template_is_told() -> None:
    tokenizer = completed("mistral", "{{ bos_token }}{{ messages[0].content }}")
    chat = [[{"role": "user", "content": "<s>U"}]]
    assert template_notes(tokenizer, chat) == [
        "prompts begin with <s> twice: remove it from the data, for the chat template writes it"
    ]


# -- variables of templates -------------------------------------------------------------------------------------------


def test_a_switch_is_part_of_the_exported_template_and_can_still_be_given(tmp_path: Path) -> None:
    completed("qwen3", enable_thinking=False).save_pretrained(tmp_path)
    exported = AutoTokenizer.from_pretrained(tmp_path)
    options = {"tokenize": False, "add_generation_prompt": True}
    assert exported.apply_chat_template([USER], **options).endswith("<think>\n\n</think>\n\n")
    assert exported.apply_chat_template([USER], enable_thinking=True, **options).endswith("assistant\n")
    again = load_tokenizer(str(tmp_path), chat_template_kwargs={"enable_thinking": True})
    assert text_of(again, USER).endswith("assistant\n")


def test_text_with_quotes_reaches_the_template() -> None:
    assert "Today Date: a 'b' \"c\"\\n\n" in text_of(completed("llama3_2", date_string="a 'b' \"c\"\\n"), USER)


@pytest.mark.parametrize("name", ["enable_thinkin", "messages", "a b"])
def test_a_variable_that_the_template_does_not_read_is_refused(name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"chat_template_kwargs: the chat template does not read {name}: .* are enable_thinking; rem"
    ):
        completed("qwen3", **{name: False})


def test_a_date_in_the_prompt_is_told_with_its_fix() -> None:
    (note,) = template_notes(completed("llama3_2"), [[USER]])
    assert note.startswith("the chat template writes today's date")
    assert "set model.policy.chat_template_kwargs.date_string" in note
    assert template_notes(completed("llama3_2", date_string="26 Jul 2024"), [[USER]]) == []


# -- base models ------------------------------------------------------------------------------------------------------


def test_the_plain_template_renders_shots_as_turns_and_ends_them() -> None:
    tokenizer = completed("gemma3_base", PLAIN)
    assert template_notes(tokenizer, [[SYSTEM, USER]]) == []
    shots = [SYSTEM, USER, {"role": "assistant", "content": "A"}, {"role": "user", "content": "V"}]
    assert text_of(tokenizer, *shots) == "<bos>S\n\nQuestion:\nU\n\nAnswer:\nA<eos>\n\nQuestion:\nV\n\nAnswer:\n"
    ids = [*encode_prompt(tokenizer, shots[:2]), *encode_completion(tokenizer, "A", tokenizer.eos_token_id)]
    assert encode_prompt(tokenizer, shots)[: len(ids)] == ids


def test_a_base_model_is_told_of_the_plain_template(tmp_path: Path) -> None:
    family_tokenizer("gemma3_base").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"give data.task.init_args.chat_template; for a base model, plain will do"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ConfigError, match=r"chat_template: 'plian' is not the text of a Jinja template, .* or plain"):
        load_tokenizer(str(tmp_path), chat_template="plian")


def test_under_the_plain_template_the_next_question_ends_a_completion() -> None:
    plain, text = completed("gemma3_base", PLAIN), "4. \n\nQuestion:"
    for given, stop, read in (
        (SamplingParams(), ["\n\nQuestion:"], "4. "),
        (SamplingParams(stop_in_text=True), ["\n\nQuestion:"], text),
        (SamplingParams(stop=[]), [], text),
        (SamplingParams(stop=["."]), ["."], text),
        (SamplingParams(stop=["."], stop_in_text=False), ["."], "4"),
    ):
        data = rollouts(sampling=given)
        for filled in (data.sampling.with_stops_of(plain), data.val_sampling.with_stops_of(plain)):
            assert filled.stop == stop
            assert filled.read(text) == read
    assert SamplingParams().with_stops_of(completed("gemma2")).stop is None


@llama_alone
def test_the_next_question_ends_completions_of_an_exported_policy_too(model_path: str, tmp_path: Path) -> None:
    """Its tokenizer has the text of the template, which no config names any more."""
    first = rollouts(task=ToyTask(chat_template="plain"))
    module = grpo(model_path)
    fit(tmp_path, module, 1, first)
    module.policy.save_pretrained(tmp_path / "policy")
    second = rollouts()
    fit(tmp_path, grpo(str(tmp_path / "policy")), 1, second)
    assert [data.recipe("train").sampling.stop for data in (first, second)] == [["\n\nQuestion:"]] * 2
    assert second.recipe("val").sampling.stop == ["\n\nQuestion:"]


@llama_alone
def test_a_stop_string_with_a_special_token_is_refused(model_path: str, tmp_path: Path) -> None:
    """Completions are texts without special tokens."""
    wrong = SamplingParams(max_new_tokens=4, stop=["a", "<|im_start|>user"])
    text = r"stop: '<\|im_start\|>user' holds the special token <\|im_start\|>, which .* would never be found: remove"
    for key in ("sampling", "val_sampling"):
        module = grpo(model_path)
        with pytest.raises(ConfigError, match=rf"data\.{key}\.{text}"):
            fit(tmp_path, module, 1, rollouts(**{key: wrong}))
        assert not hasattr(module, "policy"), "the model was loaded"
    with pytest.raises(ConfigError, match=rf"^sampling\.{text}"):
        grpo(model_path).generate("Hi", wrong)


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_a_tokenizer_larger_than_the_embedding_works_until_a_prompt_has_such_a_token(tmp_path: Path) -> None:
    path = save_family(tmp_path, "qwen2_5")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens({"pad_token": "<|extra|>", "additional_special_tokens": ["<|more|>"]})
    tokenizer.save_pretrained(path)
    module = grpo(path)
    fit(tmp_path, module, 1, rollouts(task=ToyTask(rows=2), prompts_per_step=1))
    assert module.policy.pad_token_id == 0, "the embedding has no row for <|extra|>"
    task = ToyTask(rows=2)
    task.system_prompt = "Be <|more|>."
    with pytest.raises(ConfigError, match=r"has the token '<\|more\|>' \(260\), but the embedding has 259 rows: "):
        fit(tmp_path, grpo(path), 1, rollouts(task=task))
    module.policy.tokenizer.eos_token = "<|more|>"
    assert tokenizer.convert_tokens_to_ids("<|more|>") not in terminators(module.policy.tokenizer, module.policy.lm)


def test_a_pad_that_is_eos_or_missing_changes_no_completion(tmp_path: Path) -> None:
    path = save_family(tmp_path, "qwen2_5")
    before = first_completions(tmp_path, path)
    for pad in ("<|im_end|>", None):
        tokenizer = AutoTokenizer.from_pretrained(path)
        tokenizer.pad_token = pad
        tokenizer.save_pretrained(path)
        assert AutoTokenizer.from_pretrained(path).pad_token == pad
        assert first_completions(tmp_path, path) == before


def first_completions(folder: Path, path: str) -> list[list[int]]:
    data: RolloutDataModule = rollouts(task=ToyTask(rows=4))
    fit(folder, grpo(path), 1, data)
    return [attempt.completion.token_ids for attempt in data.sample(3).attempts]


# -- quantised folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantised", "name"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8"),
    ],
)
def test_quantised_weights_are_refused_before_they_are_read(tmp_path: Path, quantised: dict, name: str) -> None:
    path = Path(save_family(tmp_path, "qwen2_5"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
    (path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=rf"model.policy.path: the weights in .* are quantised \({name}\)") as error:
        fit(tmp_path, grpo(str(path)), 1)
    assert "\n" not in str(error.value)
    Policy(PolicyConfig(path=str(path), init="random"))
