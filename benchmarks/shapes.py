"""The inputs of the benchmarks: random-weight models with tokenizers, prompts of given lengths, and rewards.

Completion lengths are sampled, not scripted: the end of sequence has the same probability at every position (its row of
the output head is set accordingly), so lengths are geometric up to the token limit. Our side thus runs exactly as users
run it; the other side is then forced to the lengths that ours sampled.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, Lfm2Config, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from grpo_lightning.tasks import GSM8K, Task
from grpo_lightning.tasks.base import Split
from grpo_lightning.tasks.gsm8k import SYSTEM_PROMPT
from grpo_lightning.types import Prompt, Sample, Verdict
from grpo_lightning.verifiers import Verifier

PAD, BOS, EOS = 0, 1, 2
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Shape:
    """One configuration of a benchmark.

    Args:
        name: name on the command line and in the table.
        about: short description for the table.
        kind: architecture, ``llama`` or ``lfm2``.
        dims: dimensions of the model, with the names of its config.
        prompts: prompts per step, ``B``.
        group_size: completions per prompt, ``G``.
        prompt_tokens: lengths of the shortest and the longest prompt; the others are evenly spaced in between.
        cap: maximum number of tokens per completion, ``T``.
        mean: mean length without the limit; ``None`` makes every completion reach the limit.
        updates: optimizer steps per rollout (mu).
        beta: weight of the KL to the reference.
        lora: rank of the adapter; ``None`` trains all weights.
        dtype: dtype of the weights.
        precision: ``32-true`` or ``bf16-mixed``.
        trl_microbatches: rows per micro-batch that TRL tries; the fastest is kept.
        cuda_only: whether the model is too large for a CPU.
        pretrained: whether weights and prompts are given, as a folder and as ``questions``, instead of drawn. Lengths
            are then those that the model gives its answers.
        temperature: sampling temperature.
        questions: the texts of the prompts.
    """

    name: str
    about: str
    kind: str
    dims: dict[str, Any] = field(hash=False)
    prompts: int = 8
    group_size: int = 8
    prompt_tokens: tuple[int, int] = (24, 40)
    cap: int = 128
    mean: float | None = 52.0
    updates: int = 1
    beta: float = 0.0
    lora: int | None = None
    dtype: str = "float32"
    precision: str = "32-true"
    trl_microbatches: tuple[int, ...] = (16, 8, 4)
    cuda_only: bool = False
    pretrained: bool = False
    temperature: float = 1.0
    questions: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Completions per step."""
        return self.prompts * self.group_size

    @property
    def vocab(self) -> int:
        """Size of the vocabulary."""
        return int(self.dims["vocab_size"])


TINY = {
    "vocab_size": 160, "hidden_size": 192, "intermediate_size": 560, "num_hidden_layers": 6,
    "num_attention_heads": 6, "num_key_value_heads": 2,
}  # fmt: skip
SMALL = {
    "vocab_size": 65_536, "hidden_size": 384, "intermediate_size": 1280, "num_hidden_layers": 8,
    "num_attention_heads": 6, "num_key_value_heads": 2,
    "layer_types": ["conv", "conv", "full_attention", "conv", "conv", "full_attention", "conv", "full_attention"],
}  # fmt: skip
SMOLLM2 = {
    "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3,
}  # fmt: skip
LFM25 = {
    "vocab_size": 65_536, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8,
    "layer_types": ["full_attention" if layer in (2, 5, 8, 10, 12, 14) else "conv" for layer in range(16)],
}  # fmt: skip

_smollm2 = Shape(
    "smollm2", "SmolLM2-135M on GSM8K", "llama", SMOLLM2, prompts=4, cap=256, trl_microbatches=(8, 4),
    pretrained=True, temperature=0.6,
)  # fmt: skip
_tiny = Shape("tiny", "2.5 M Llama-like, V=160", "llama", TINY)
_small = Shape("small", "42 M LFM2-shaped, V=65,536", "lfm2", SMALL, prompts=2, trl_microbatches=(16, 8, 4))
_LISTED = (
    _tiny,
    _small,
    replace(_tiny, name="tiny-cap", about="tiny, all rows to the cap", mean=None),
    replace(_small, name="small-cap", about="small, all rows to the cap", mean=None),
    replace(_tiny, name="tiny-mu2", about="tiny, mu=2", updates=2),
    replace(_small, name="small-mu2", about="small, mu=2", updates=2),
    replace(_tiny, name="tiny-kl", about="tiny, beta=0.04", beta=0.04),
    replace(_small, name="small-lora", about="small, LoRA r=16", lora=16),
    replace(
        _tiny, name="long", about="tiny, long completions, wide spread", prompts=4, cap=1024, mean=300.0,
        trl_microbatches=(32, 8, 4),
    ),
    Shape(
        "long-prompts", "18 M LFM2-shaped, V=4,096, P=1,000", "lfm2", SMALL | {"vocab_size": 4096}, prompts=1,
        prompt_tokens=(1000, 1000), mean=None, trl_microbatches=(8, 4, 2),
    ),
    Shape(
        "lfm2.5-1.2b", "1.2 B LFM2.5, LoRA r=16, bf16", "lfm2", LFM25, cap=512, mean=220.0, lora=16, dtype="bfloat16",
        precision="bf16-mixed", prompt_tokens=(100, 160), trl_microbatches=(64, 32, 16), cuda_only=True,
    ),
    Shape(
        "smollm2-135m", "135 M SmolLM2, bf16", "llama", SMOLLM2, cap=512, mean=220.0, precision="bf16-mixed",
        prompt_tokens=(100, 160), trl_microbatches=(64, 32, 16), cuda_only=True,
    ),
    _smollm2,
    replace(_smollm2, name="smollm2-cap", about="the same, most rows to the cap", cap=64),
    replace(_smollm2, name="smollm2-lora", about="the same, LoRA r=16", lora=16),
    replace(_smollm2, name="smollm2-bf16", about="the same, bf16", precision="bf16-mixed"),
    replace(_smollm2, name="smollm2-lora-bf16", about="the same, LoRA r=16, bf16", lora=16, precision="bf16-mixed"),
)  # fmt: skip
SHAPES: dict[str, Shape] = {shape.name: shape for shape in _LISTED}


def smoke(shape: Shape) -> Shape:
    """Return the shape, scaled down to run in seconds."""
    dims = shape.dims | {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    }  # fmt: skip
    if "layer_types" in dims:
        dims["layer_types"] = ["conv", "full_attention"]
    return replace(
        shape, dims=dims, prompts=min(shape.prompts, 2), group_size=4, cap=12, prompt_tokens=(6, 9),
        mean=shape.mean and 6.0, trl_microbatches=(8, 4), dtype="float32", precision="32-true", pretrained=False,
    )  # fmt: skip


# -- model and tokenizer ----------------------------------------------------------------------------------------------


def build(shape: Shape, folder: Path, seed: int = 0, device: str = "cpu") -> Path:
    """Write a Hugging Face folder with random weights, drawn on a device, and a tokenizer with one token per letter."""
    torch.manual_seed(seed)
    common = {
        "max_position_embeddings": 4096, "tie_word_embeddings": True, "pad_token_id": PAD, "bos_token_id": BOS,
        "eos_token_id": EOS,
    }  # fmt: skip
    config: LlamaConfig | Lfm2Config
    if shape.kind == "llama":
        config = LlamaConfig(**shape.dims | common)
    else:
        config = Lfm2Config(**shape.dims | common, block_auto_adjust_ff_dim=False)
    with torch.device(device):
        lm = AutoModelForCausalLM.from_config(config)
        _set_end_probability(lm, 0.0 if shape.mean is None else 1 / shape.mean)
    lm.to(getattr(torch, shape.dtype)).save_pretrained(folder)
    tokenizer(shape.vocab).save_pretrained(folder)
    return folder


@torch.no_grad()
def _set_end_probability(lm: PreTrainedModel, probability: float) -> None:
    """Make the end of sequence about equally probable at every position.

    All embeddings share their first coordinate, which the residual stream carries to the tied head. The end's row has
    only a first coordinate, with a different value, so it gets the same logit everywhere.
    """
    weight_VD = lm.get_input_embeddings().weight
    assert lm.get_output_embeddings().weight is weight_VD
    weight_VD[:, 0] = 0.5
    ids = torch.randint(EOS + 1, len(weight_VD), (8, 48))
    hidden_MD = lm.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
    others_M = (hidden_MD @ weight_VD.T).index_fill(1, torch.tensor([EOS]), -torch.inf).logsumexp(1)
    weight_VD[EOS, 1:] = 0
    low, high = -200.0, 200.0
    for _ in range(60):
        middle = (low + high) / 2
        if torch.sigmoid(hidden_MD[:, 0] * middle - others_M).mean() < max(probability, 1e-9):
            low = middle
        else:
            high = middle
    weight_VD[EOS, 0] = low


def tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per letter; the rest of the vocabulary does not occur in prompts."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    tokens = [*special, *LETTERS]
    tokens += [f"<{index}>" for index in range(len(tokens), vocab)]
    words = models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>")
    fast = Tokenizer(words)
    fast.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    fast.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        chat_template=TEMPLATE, clean_up_tokenization_spaces=False, padding_side="left",
    )  # fmt: skip


# -- prompts and rewards ----------------------------------------------------------------------------------------------


def with_questions(shape: Shape, gsm8k: str) -> Shape:
    """Return the shape with the first training questions of GSM8K, which is a hub name or a folder."""
    prompts = GSM8K(gsm8k, system_prompt=None, prompt_template=f"{SYSTEM_PROMPT}\n\n{{prompt}}").prompts("train")
    return replace(shape, questions=tuple(prompt.messages[0]["content"] for prompt in prompts[: shape.prompts]))


def texts(shape: Shape) -> list[str]:
    """Make the prompts of one step: the given ones, or random letters with the lengths of the shape, including BOS."""
    if shape.pretrained:
        return list(shape.questions)
    draw = random.Random(0)
    low, high = shape.prompt_tokens
    span = max(1, shape.prompts - 1)
    lengths = [low + round((high - low) * index / span) for index in range(shape.prompts)]
    return ["".join(draw.choices(LETTERS, k=length - 1)) for length in lengths]


class Letters(Task):
    """A task with the same prompts in every step."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def prompts(self, split: Split) -> Sequence[Prompt]:
        return [Prompt(self.messages(text)) for text in texts(self.shape)]

    def gold_completion(self, prompt: Prompt) -> str:
        """Return some text: these prompts have no correct answer, and setup warns about it."""
        return LETTERS[:4]


def reward(token_ids: Sequence[int]) -> float:
    """Compute a reward that differs between nearly all completions, so that every group has a signal on both sides."""
    return (0.618 * sum(token_ids[:4]) + 0.377 * len(token_ids)) % 1.0


class TokenVerifier(Verifier):
    """:func:`reward` as a verifier."""

    def verify(self, sample: Sample) -> Verdict:
        assert sample.token_ids is not None
        score = reward(sample.token_ids)
        return Verdict(correct=score > 0.5, format_valid=True, score=score)
