"""Write the tiny decoder of a quickstart: a Hugging Face folder with a config and a tokenizer, without weights.

    python scripts/make_tiny_decoder.py
    python scripts/make_tiny_decoder.py --task extraction --out configs/tiny_decoder_json
    python scripts/make_tiny_decoder.py --task programs --out configs/tiny_decoder_code
    python scripts/make_tiny_decoder.py --task turns --out configs/tiny_decoder_turns

The tokenizer is a byte-level BPE trained on the train split of a generated task. The same input gives the same folder,
byte for byte.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from grpo_lightning.tasks import Arithmetic, Calculations, Extraction, Numbers, Programs
from grpo_lightning.tasks.base import Task
from grpo_lightning.types import Prompt

# With the short prompts of the quickstarts.
TASKS: dict[str, list[Task]] = {
    "arithmetic": [Arithmetic(prompt_template="{prompt}")],
    "extraction": [Extraction(prompt_template="{prompt}", shots=0)],
    "programs": [Programs(prompt_template="Write f(x): {prompt}.")],
    "turns": [Calculations(demonstrations=True), Numbers(demonstrations=2000)],
}
VOCABULARY = 430
PAD, BOS, START, END = "<|pad|>", "<|startoftext|>", "<|im_start|>", "<|im_end|>"

# ChatML as LFM2 writes it: the template emits BOS itself, and a turn ends with <|im_end|> and a newline.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# What a template with tools has on top: here their names and arguments, and where a call is written.
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\\nTools by <tool_call>:' }}"
    "{% for tool in tools %}{{ ' ' + tool['function']['name'] + ' ' + "
    "tool['function']['parameters']['properties'] | join(' ') }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}"
)


def texts(prompts: list[Prompt]) -> Iterator[str]:
    """Yield the texts on which the tokenizer is trained."""
    for prompt in prompts:
        yield from ("system\n", "user\n", "assistant\n")
        yield prompt.messages[-1]["content"]
        yield prompt.solution or ""


def make_tokenizer(prompts: list[Prompt], chat_template: str = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Train the tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    # Split digits first: numbers are read and written digit by digit, so that arithmetic can be learned.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(prompts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        additional_special_tokens=[START],
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
        padding_side="left",
    )


def make_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Make the config of the decoder."""
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        # The default, 0.02, suits wide models; with 0.06 this one learns to copy numbers in half as many steps.
        initializer_range=0.06,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--task", choices=TASKS, default="arithmetic", help="task on whose texts the tokenizer is trained"
    )
    parser.add_argument("--out", type=Path, default=Path("configs/tiny_decoder"), help="folder to write")
    arguments = parser.parse_args()
    out: Path = arguments.out

    prompts = [prompt for task in TASKS[arguments.task] for prompt in task.prompts("train")]
    with_tools = CHAT_TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}" + TOOLS)
    tokenizer = make_tokenizer(prompts, with_tools if arguments.task == "turns" else CHAT_TEMPLATE)
    config = make_config(tokenizer)
    tokenizer.save_pretrained(out)
    config.save_pretrained(out)

    parameters = AutoModelForCausalLM.from_config(config).num_parameters()
    chats = [prompt.messages for prompt in prompts]
    rendered = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False)
    prompt_tokens = [len(ids) for ids in rendered]
    completion_tokens = [len(ids) for ids in tokenizer([f"{prompt.solution}{END}" for prompt in prompts]).input_ids]
    print(f"{out}: {parameters:,} parameters, {len(tokenizer)} tokens")
    print(f"prompt tokens: mean {mean(prompt_tokens):.1f}, max {max(prompt_tokens)}")
    print(f"completion tokens: mean {mean(completion_tokens):.1f}, max {max(completion_tokens)}")


if __name__ == "__main__":
    main()
