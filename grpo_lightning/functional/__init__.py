"""The mathematics, on tensors alone: one function is one equation. Imports torch and nothing else of the project."""

from grpo_lightning.functional.advantages import AdvantageKind, group_advantages, has_signal
from grpo_lightning.functional.gae import (
    ValueLossTerms,
    adapted_kl_coef,
    explained_variance,
    gae,
    token_rewards,
    value_loss,
    whiten,
)
from grpo_lightning.functional.in_place import InPlaceEmbedding, adding_in_place
from grpo_lightning.functional.kl import KLEstimator, kl_divergence
from grpo_lightning.functional.logprobs import TokenLogprobs, token_logprobs
from grpo_lightning.functional.losses import (
    Aggregation,
    Objective,
    PolicyLossTerms,
    RatioLevel,
    aggregate,
    cispo_objective,
    clipped_objective,
    importance_ratio,
    policy_loss,
    shaped_objective,
)
from grpo_lightning.functional.masking import length_mask, masked_max, masked_mean, masked_std, masked_sum
from grpo_lightning.functional.pass_at_k import pass_at_k

__all__ = [
    "AdvantageKind",
    "Aggregation",
    "InPlaceEmbedding",
    "KLEstimator",
    "Objective",
    "PolicyLossTerms",
    "RatioLevel",
    "TokenLogprobs",
    "ValueLossTerms",
    "adapted_kl_coef",
    "adding_in_place",
    "aggregate",
    "cispo_objective",
    "clipped_objective",
    "explained_variance",
    "gae",
    "group_advantages",
    "has_signal",
    "importance_ratio",
    "kl_divergence",
    "length_mask",
    "masked_max",
    "masked_mean",
    "masked_std",
    "masked_sum",
    "pass_at_k",
    "policy_loss",
    "shaped_objective",
    "token_logprobs",
    "token_rewards",
    "value_loss",
    "whiten",
]
