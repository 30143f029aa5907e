"""The contract of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from grpo_lightning.errors import ConfigError
from grpo_lightning.functional._checks import check_mask, check_same_shape


class PolicyLossTerms(NamedTuple):
    """The loss of each token, ``[N, T]`` each.

    Args:
        loss_NT: what is minimised.
        ratio_NT: the importance ratio, before any clip; logged.
        clipped_NT: True where the clip cut the gradient, or its weight; logged.
    """

    loss_NT: Tensor
    ratio_NT: Tensor
    clipped_NT: Tensor


class Objective(ABC):
    """What an update maximises. A subclass writes :meth:`terms`; its constructor's arguments are its options in YAML.

    Not part of an objective: the KL to the reference, which is added to its loss, and the aggregation of the tokens,
    whose denominators count the whole optimizer step. So the gradient does not depend on the split into micro-batches
    for any objective whose terms of a row depend on that row alone; :func:`check_objective` refuses others.
    """

    name: ClassVar[str]
    """What tables of runs call it; default: the name of the class."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__dict__.get("name", cls.__name__)

    @abstractmethod
    def terms(
        self, logprobs_NT: Tensor, old_logprobs_NT: Tensor, advantages_NT: Tensor, mask_NT: Tensor
    ) -> PolicyLossTerms:
        """The loss of each token of ``N`` completions of up to ``T`` tokens.

        Args:
            logprobs_NT: log-probs of the policy, with gradient; 0 at masked positions.
            old_logprobs_NT: log-probs of the policy that sampled, without gradient; 0 at masked positions. Equal to
                ``logprobs_NT`` in the first update of a rollout.
            advantages_NT: a constant, 0 at masked positions. GRPO has the same for all tokens of a completion.
            mask_NT: True where a token counts. What is returned elsewhere is ignored.
        """

    def __call__(
        self, logprobs_NT: Tensor, old_logprobs_NT: Tensor | None, advantages: Tensor, mask_NT: Tensor
    ) -> PolicyLossTerms:
        """:meth:`terms` of prepared inputs. In the result, only the loss carries gradients, and masked positions have
        loss 0, ratio 1 and are not clipped.

        Args:
            logprobs_NT: log-probs of the policy. What is at masked positions changes neither loss nor gradient.
            old_logprobs_NT: log-probs of the policy that sampled. ``None``: it is the present one; the ratio is exactly
                1, and the gradient of ``rho A`` exactly ``A * grad log pi``.
            advantages: ``[N]``, one per completion, or ``[N, T]``, one per token; taken as constants.
            mask_NT: True where a token counts.

        Raises:
            ValueError: the shapes do not fit together.
            ConfigError: :meth:`terms` returned something else than the terms of these tokens.
        """
        check_mask(mask_NT)
        check_same_shape(logprobs_NT=logprobs_NT, old_logprobs_NT=old_logprobs_NT, mask_NT=mask_NT)
        if logprobs_NT.dim() != 2:
            raise ValueError(f"logprobs_NT must have two dimensions, but is {tuple(logprobs_NT.shape)}.")
        if advantages.shape not in (logprobs_NT.shape, logprobs_NT.shape[:1]):
            raise ValueError(
                f"advantages must be [N] or [N, T] for logprobs of shape {tuple(logprobs_NT.shape)}, "
                f"but is {tuple(advantages.shape)}."
            )
        logprobs_NT = torch.where(mask_NT, logprobs_NT, 0)
        old_NT = logprobs_NT if old_logprobs_NT is None else torch.where(mask_NT, old_logprobs_NT, 0)
        advantages_NT = advantages.unsqueeze(1) if advantages.dim() == 1 else advantages
        advantages_NT = torch.where(mask_NT, advantages_NT.detach(), 0)

        terms = self.terms(logprobs_NT, old_NT.detach(), advantages_NT, mask_NT)
        self._check(terms, logprobs_NT)
        return PolicyLossTerms(
            loss_NT=torch.where(mask_NT, terms.loss_NT, 0),
            ratio_NT=torch.where(mask_NT, terms.ratio_NT.detach(), 1),
            clipped_NT=terms.clipped_NT & mask_NT,
        )

    def _check(self, terms: PolicyLossTerms, logprobs_NT: Tensor) -> None:
        place = f"{type(self).__name__}.terms"
        if not isinstance(terms, PolicyLossTerms):
            raise ConfigError(f"{place} must return PolicyLossTerms, not {type(terms).__name__}")
        for key, tensor in terms._asdict().items():
            if not isinstance(tensor, Tensor) or tensor.shape != logprobs_NT.shape:
                found = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
                raise ConfigError(f"{place}: {key} must have the shape {tuple(logprobs_NT.shape)}, but is {found}")
        if terms.clipped_NT.dtype != torch.bool:
            raise ConfigError(f"{place}: clipped_NT must be boolean, but has dtype {terms.clipped_NT.dtype}")
