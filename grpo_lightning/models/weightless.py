"""Models without weights: shapes from ``config.json``, on torch's meta device, and nothing else read or downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_LOADED: ContextVar[list[nn.Module] | None] = ContextVar("loaded", default=None)

TEMPLATE = "{% for message in messages %}{{ message.content + '<end>' }}{% endfor %}"


@contextmanager
def weightless() -> Iterator[list[nn.Module]]:
    """Models loaded inside, by ``Policy``, ``Critic`` or ``load_model``, have no weights; a list collects them."""
    loaded: list[nn.Module] = []
    token = _LOADED.set(loaded)
    try:
        with torch.device("meta"):
            yield loaded
    finally:
        _LOADED.reset(token)


def is_weightless() -> bool:
    """Whether the code runs inside :func:`weightless`: there is nothing to load, and no result to check."""
    return _LOADED.get() is not None


def remember(model: nn.Module) -> None:
    """Add a model to those that :func:`weightless` gives; outside of it, do nothing."""
    loaded = _LOADED.get()
    if loaded is not None:
        loaded.append(model)


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """A vocabulary of two, a token per word: a rehearsal has lengths and no texts."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer
