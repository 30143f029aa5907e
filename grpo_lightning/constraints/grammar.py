"""Grammars over the tokens of a policy: which tokens can follow, step by step or for whole completions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from grpo_lightning.errors import ConfigError, RunError
from grpo_lightning.types import AllowedTokens

if TYPE_CHECKING:
    from llguidance import LLMatcher

_KEPT = 256
"""Compiled grammars that a policy keeps: those used last."""
_DEAD_END = "no token of the tokenizer can continue a completion as its grammar demands"


def library() -> Any:
    """The module ``llguidance``.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import llguidance
    except ModuleNotFoundError as error:
        raise ConfigError(
            "data.sampling.constraint: llguidance is not installed: pip install 'grpo-lightning[constraint]'"
        ) from error
    return llguidance


@lru_cache(maxsize=4096)
def problem_of(grammar: str) -> str | None:
    """Why a grammar cannot be used, in one clause, or ``None``: it can."""
    is_wrong, messages = library().LLMatcher.validate_grammar_with_warnings(grammar)
    return _clause(messages[0]) if is_wrong else None


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """Return the tokenizer.

    Raises:
        ConfigError: grammars cannot read its tokens.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(
            f"data.sampling.constraint: needs a fast tokenizer; model.policy.path does not have one: "
            f"{type(tokenizer).__name__} is written in Python"
        )
    return tokenizer


def _clause(message: str) -> str:
    """What matters of llguidance's message, which may go on with the state of its parser."""
    lines = message.strip().splitlines() or ["no reason given"]
    return next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])


class Grammars:
    """Grammars over the tokens of a policy, each compiled once.

    Args:
        tokenizer: the policy's.
        vocabulary: rows of the output head; those beyond the tokenizer's tokens are never allowed.
        terminators: the tokens that end a completion: allowed exactly where its text is complete.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, terminators: Sequence[int]) -> None:
        fast = check_tokenizer(tokenizer)
        library()
        import llguidance.hf

        size = max(vocabulary, len(tokenizer))
        self.words = -(-size // 32)
        self._tokens = llguidance.hf.from_tokenizer(fast, n_vocab=size, eos_token=list(terminators))
        self._executor = llguidance.LLExecutor()
        self._compiled = lru_cache(maxsize=_KEPT)(self._compile)

    def start(self, grammar: str) -> LLMatcher:
        """A matcher at the beginning of a completion."""
        return self._compiled(grammar).deep_copy()

    def _compile(self, grammar: str) -> LLMatcher:
        matcher = library().LLMatcher(self._tokens, grammar, log_level=0)
        _check(matcher)
        return matcher

    def allowed(self, matchers: Sequence[LLMatcher]) -> Tensor:
        """The tokens that may come next, ``bits_RW`` on the CPU as in :class:`~grpo_lightning.types.AllowedTokens`.

        Raises:
            RunError: no token can, or the grammar is too complex.
        """
        from llguidance.numpy import fill_next_token_bitmask_par

        bits_RW = np.zeros((len(matchers), self.words), dtype=np.int32)
        fill_next_token_bitmask_par(self._executor, [(matcher, row) for row, matcher in enumerate(matchers)], bits_RW)
        if not bits_RW.any(1).all() or any(matcher.is_error() for matcher in matchers):
            for matcher in matchers:
                _check(matcher)
            raise RunError(f"data.sampling.constraint: {_DEAD_END}")
        return torch.from_numpy(bits_RW)

    def advance(self, matchers: Sequence[LLMatcher], tokens: Sequence[int]) -> None:
        """Take over the tokens just drawn, one per matcher.

        Raises:
            RunError: one of them was not allowed.
        """
        for matcher, token in zip(matchers, tokens, strict=True):
            if not matcher.consume_token(token):
                _check(matcher)

    def replay(self, completions: Sequence[tuple[str, Sequence[int]]]) -> AllowedTokens:
        """The tokens that were allowed at each place of some completions, on the CPU.

        Args:
            completions: grammars with the token ids that were sampled under them.

        Raises:
            RunError: a completion does not keep to its grammar.
        """
        sets: dict[bytes, int] = {}
        width = max((len(ids) for _, ids in completions), default=0)
        set_NT = torch.zeros(len(completions), width, dtype=torch.long)
        for row, (grammar, ids) in enumerate(completions):
            matcher, numbers = self.start(grammar), []
            for token in ids:
                numbers.append(sets.setdefault(matcher.compute_bitmask(), len(sets)))
                self.advance([matcher], [token])
            set_NT[row, : len(ids)] = torch.tensor(numbers)
        bits_S = np.frombuffer(b"".join(sets), dtype=np.int32)
        return AllowedTokens(torch.from_numpy(bits_S.copy()).view(len(sets), -1), set_NT)


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        clause = _clause(matcher.get_error())
        raise RunError(f"data.sampling.constraint: {_DEAD_END if clause.startswith('NoExtension') else clause}")
