from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from grpo_lightning.tasks import Arithmetic
from tests.processes import run_script

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs/tiny_decoder"
TOKENIZER: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(FOLDER)
NO_SPECIAL = st.text().filter(lambda text: "<|" not in text)


def chat_ids(messages: list[dict[str, str]], **options: bool) -> list[int]:
    ids: list[int] = TOKENIZER.apply_chat_template(messages, return_dict=False, **options)
    return ids


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    ids = TOKENIZER(text).input_ids
    assert TOKENIZER.decode(ids) == text


@given(st.integers(min_value=0))
def test_every_digit_is_a_token(number: int) -> None:
    assert [TOKENIZER.decode([i]) for i in TOKENIZER(f"{number}").input_ids] == list(str(number))


def test_encoding_adds_no_special_tokens() -> None:
    assert not set(TOKENIZER("Tom has 2 eggs.").input_ids) & set(TOKENIZER.all_special_ids)


def test_the_special_tokens_agree_with_the_config() -> None:
    config = AutoConfig.from_pretrained(FOLDER)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 3)
    assert TOKENIZER.convert_ids_to_tokens(range(4)) == ["<|pad|>", "<|startoftext|>", "<|im_start|>", "<|im_end|>"]
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (0, 1, 3)
    assert config.vocab_size == len(TOKENIZER)


def test_the_model_has_about_0_28_million_parameters() -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(FOLDER))
    assert 270_000 < model.num_parameters() < 290_000
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_the_template_writes_bos_once_and_opens_the_assistants_turn() -> None:
    rendered = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert rendered == "<|startoftext|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@given(user=NO_SPECIAL, completion=NO_SPECIAL)
def test_prompt_and_completion_are_a_prefix_of_the_whole_chat(user: str, completion: str) -> None:
    prompt = [{"role": "user", "content": user}]
    whole = chat_ids([*prompt, {"role": "assistant", "content": completion}])
    parts = chat_ids(prompt, add_generation_prompt=True) + TOKENIZER(completion).input_ids + [TOKENIZER.eos_token_id]
    assert whole[: len(parts)] == parts


def test_problems_are_short() -> None:
    prompts = Arithmetic(train_size=500, prompt_template="{prompt}").prompts("train")
    lengths = [len(chat_ids(prompt.messages, add_generation_prompt=True)) for prompt in prompts]
    assert sum(lengths) / len(lengths) <= 40
    assert max(lengths) <= 50
    assert max(len(TOKENIZER(prompt.solution).input_ids) + 1 for prompt in prompts) <= 32


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "tiny_decoder"),
        (["--task", "extraction"], "tiny_decoder_json"),
        (["--task", "programs"], "tiny_decoder_code"),
        (["--task", "turns"], "tiny_decoder_turns"),
    ],
)
def test_the_script_writes_the_committed_folder(arguments: list[str], name: str, tmp_path: Path) -> None:
    folder, script = ROOT / "configs" / name, ROOT / "scripts/make_tiny_decoder.py"
    assert "parameters" in run_script(script, *arguments, "--out", str(tmp_path))
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / file).read_text() == (folder / file).read_text(), f"run {script} again"
    made, committed = (json.loads((place / "config.json").read_text()) for place in (tmp_path, folder))
    assert made | {"transformers_version": ""} == committed | {"transformers_version": ""}, f"run {script} again"
