"""Models without weights: shapes from ``config.json``, on torch's meta device, and nothing else read or downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_WEIGHTLESS: ContextVar[bool] = ContextVar("weightless", default=False)

TEMPLATE = "{% for message in messages %}{{ message.content + '<end>' }}{% endfor %}"


@contextmanager
def weightless() -> Iterator[None]:
    """Models loaded inside, by ``Policy``, ``Critic`` or ``load_model``, have shapes and no weights."""
    token = _WEIGHTLESS.set(True)
    try:
        with torch.device("meta"):
            yield
    finally:
        _WEIGHTLESS.reset(token)


def is_weightless() -> bool:
    """Whether the code runs inside :func:`weightless`: there is nothing to load, and no result to check."""
    return _WEIGHTLESS.get()


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """A vocabulary of two, a token per word: a rehearsal has lengths and no texts."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer
