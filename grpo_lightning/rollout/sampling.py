"""Sampling parameters, per-row random numbers, and the draw of one token a row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo_lightning.constraints import Constraint
from grpo_lightning.errors import ConfigError
from grpo_lightning.models.templates import stops_of
from grpo_lightning.models.tokenizer import control_tokens


@dataclass
class SamplingParams:
    """How completions are sampled. The model's generation config is not used.

    Truncation (top-k, top-p, min-p) in training makes the samples slightly off-policy: the loss takes the log-probs of
    the whole distribution on both sides of its ratio.

    Args:
        temperature: logits are divided by it; 0 is greedy.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p (arXiv 1904.09751); 1 keeps all.
        min_p: keep tokens with at least this share of the best token's probability (arXiv 2407.01082); 0 keeps all.
        max_new_tokens: a completion that is longer is truncated. Default: 512; in ``val_sampling``, ``sampling``'s.
        stop: strings that end a completion whose text has one. Default: none, or the next question under
            ``chat_template: plain``; in ``val_sampling``, ``sampling``'s.
        stop_in_text: whether verifiers read the stop string. Default: all but ``plain``'s own; in ``val_sampling``,
            ``sampling``'s.
        constraint: what completions may be at all, such as ``RowSchema``: JSON by the schema of their row. Log-probs,
            entropy and KL are then those among the allowed tokens, in sampling and in training. Default: anything; in
            ``val_sampling`` as well, whatever ``sampling`` says. Needs ``grpo-lightning[constraint]``.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_new_tokens: int | None = None
    stop: list[str] | None = None
    stop_in_text: bool | None = None
    constraint: Constraint | None = None

    @property
    def cap(self) -> int:
        return 512 if self.max_new_tokens is None else self.max_new_tokens

    @property
    def truncates(self) -> bool:
        """Whether some tokens cannot be drawn."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def filled_from(self, defaults: SamplingParams) -> SamplingParams:
        """These parameters, with the length and stop strings of ``defaults`` where they have none."""
        has_own = self.stop is not None or self.stop_in_text is not None
        return replace(
            self,
            max_new_tokens=defaults.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens,
            stop=defaults.stop if self.stop is None else self.stop,
            stop_in_text=self.stop_in_text if has_own else defaults.stop_in_text,
        )

    def with_stops_of(self, tokenizer: PreTrainedTokenizerBase) -> SamplingParams:
        """These parameters; without stop strings, with those of the chat template, which verifiers do not read."""
        return self.filled_from(SamplingParams(stop=stops_of(tokenizer), stop_in_text=False))

    def read(self, text: str) -> str:
        """What a verifier reads of the text of a completion: all of it, or what precedes the stop string."""
        if self.stop_in_text is not False:
            return text
        places = [text.index(string) for string in self.stop or [] if string in text]
        return text[: min(places)] if places else text

    def check_stops(self, tokenizer: PreTrainedTokenizerBase, key: str) -> None:
        """Check that stop strings can be found in a text without special tokens; ``key`` is where the user wrote them.

        Raises:
            ConfigError: one has a special token in it.
        """
        for string in self.stop or []:
            special = next((token for token in control_tokens(tokenizer) if token in string), None)
            if special is not None:
                raise ConfigError(
                    f"{key}.stop: {string!r} holds the special token {special}, which is not part of a completion's "
                    "text, so it would never be found: remove it. Tokens that end a turn end a completion anyway; name "
                    "another one as eos_token_id in the model's generation_config.json"
                )

    def validate(self, key: str) -> None:
        """Check the ranges; ``key`` is where the user wrote them.

        Raises:
            ConfigError: one sentence with the first value that is out of its range.
        """
        ranges = {
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p < 1, "from 0 to below 1"),
            "max_new_tokens": (self.cap >= 1, "at least 1"),
            "stop": (all(self.stop or []), "non-empty strings"),
        }
        for name, (holds, wanted) in ranges.items():
            if not holds:
                raise ConfigError(f"{key}.{name}: must be {wanted}, not {getattr(self, name)!r}")


class Draw(NamedTuple):
    """Tokens drawn, with their log-probs before truncation (as the training pass sees them) and after (as drawn)."""

    tokens_N: Tensor
    logprobs_N: Tensor
    sampling_logprobs_N: Tensor


def row_seed(*parts: int | str) -> int:
    """A seed for one row, from whatever identifies it. Independent rows get independent seeds."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def uniforms(seeds: list[int], steps: int) -> Tensor:
    """``uniforms_NT`` in [0, 1): each row from its own generator, so that no row depends on its neighbours."""
    generator = torch.Generator()
    return torch.stack([torch.rand(steps, generator=generator.manual_seed(seed)) for seed in seeds])


def draw(
    logits_NV: Tensor,
    uniforms_N: Tensor,
    params: SamplingParams,
    temperature_N: Tensor | None = None,
    excluded_NV: Tensor | None = None,
) -> Draw:
    """Draw one token per row by inverting the cumulative distribution at the row's uniform number.

    One random number per row instead of the ``V`` of a Gumbel draw; no global random state.

    Args:
        logits_NV: logits of the next token.
        uniforms_N: random numbers in [0, 1).
        params: temperature and truncation.
        temperature_N: one temperature per row, all above 0, instead of that of ``params``.
        excluded_NV: True for tokens that cannot be drawn, before anything else; all log-probs are those of the others.
    """
    logits_NV = logits_NV.float()
    if excluded_NV is not None:
        logits_NV = logits_NV.masked_fill(excluded_NV, -torch.inf)
    if params.temperature == 0 and temperature_N is None:
        tokens_N = logits_NV.argmax(-1)
        logprobs_N = _pick(logits_NV, tokens_N) - logits_NV.logsumexp(-1)
        return Draw(tokens_N, logprobs_N, torch.zeros_like(logprobs_N))
    if temperature_N is not None:
        logits_NV = logits_NV / temperature_N[:, None]
    elif params.temperature != 1:
        logits_NV = logits_NV / params.temperature
    probs_NV = (_truncate(logits_NV, params) if params.truncates else logits_NV).softmax(-1)
    cumulative_NV = probs_NV.cumsum(-1)
    # Strictly below the total in float32, or the search would run past the last token that has any weight.
    targets_N1 = (uniforms_N.clamp(max=1 - 2**-22) * cumulative_NV[:, -1])[:, None]
    # (It does where logits are NaN: the engine detects that in the log-probs.)
    tokens_N = torch.searchsorted(cumulative_NV, targets_N1, right=True)[:, 0].clamp_(max=probs_NV.shape[-1] - 1)
    # A cumulative sum in parallel may wobble, and hit a token whose probability rounds to 0: no log-prob is infinite.
    if excluded_NV is not None:
        tokens_N = torch.where(_pick(excluded_NV, tokens_N), logits_NV.argmax(-1), tokens_N)
    drawn_N = _pick(probs_NV, tokens_N).clamp(min=torch.finfo(torch.float32).tiny).log()
    if not params.truncates:
        return Draw(tokens_N, drawn_N, drawn_N)
    return Draw(tokens_N, _pick(logits_NV, tokens_N) - logits_NV.logsumexp(-1), drawn_N)


def _truncate(logits_NV: Tensor, params: SamplingParams) -> Tensor:
    """Put the tokens that top-k, top-p and min-p (in this order) leave out at minus infinity."""
    if 0 < params.top_k < logits_NV.shape[-1]:
        threshold_N1 = logits_NV.topk(params.top_k, dim=-1).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < threshold_N1, -torch.inf)
    if params.top_p < 1:
        sorted_NV, order_NV = logits_NV.sort(dim=-1, descending=True)
        probs_NV = sorted_NV.softmax(-1)
        # A token stays while the probability of those before it has not reached p, so the best one always stays.
        out_NV = probs_NV.cumsum(-1) - probs_NV >= params.top_p
        logits_NV = logits_NV.masked_fill(out_NV.scatter(-1, order_NV, out_NV), -torch.inf)
    if params.min_p > 0:
        probs_NV = logits_NV.softmax(-1)
        out_NV = probs_NV < params.min_p * probs_NV.amax(-1, keepdim=True)
        logits_NV = logits_NV.masked_fill(out_NV, -torch.inf)
    return logits_NV


def _pick(values_NV: Tensor, index_N: Tensor) -> Tensor:
    return values_NV.gather(-1, index_N[:, None])[:, 0]
