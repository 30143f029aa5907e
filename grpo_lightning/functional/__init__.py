"""The mathematics, on plain tensors: one function per equation. Imports torch and nothing else from the project."""

from grpo_lightning.functional.advantages import (
    batch_std_advantages,
    decoupled_scores,
    group_std_advantages,
    has_signal,
    leave_one_out_advantages,
    maximum_likelihood_advantages,
    pass_at_k_advantages,
    unscaled_advantages,
)
from grpo_lightning.functional.correction import masked_sequence_weights, truncated_weights
from grpo_lightning.functional.divergence import (
    Divergence,
    OutputHead,
    sampled_advantages,
    sampled_divergence,
    vocabulary_divergence,
)
from grpo_lightning.functional.gae import (
    adapted_kl_coef,
    explained_variance,
    gae,
    length_adaptive_lambda,
    token_rewards,
    turn_gae,
    value_loss,
    whiten,
)
from grpo_lightning.functional.in_place import InPlaceEmbedding, adding_in_place
from grpo_lightning.functional.kl import KLEstimator, kl_divergence
from grpo_lightning.functional.logprobs import token_logprobs
from grpo_lightning.functional.losses import (
    Aggregation,
    BinaryDivergence,
    aggregate,
    binary_divergence,
    cispo_objective,
    clipped_objective,
    divergence_masked_objective,
    geometric_mean_objective,
    sequence_ratio,
    sequence_token_ratio,
    shaped_objective,
    soft_gated_objective,
    token_ratio,
)
from grpo_lightning.functional.masking import length_mask, masked_mean, masked_std, masked_sum
from grpo_lightning.functional.pass_at_k import pass_at_k
from grpo_lightning.functional.token_sets import TokenSets, excluded_tokens

__all__ = [
    "Aggregation",
    "BinaryDivergence",
    "Divergence",
    "InPlaceEmbedding",
    "KLEstimator",
    "OutputHead",
    "TokenSets",
    "adapted_kl_coef",
    "adding_in_place",
    "aggregate",
    "batch_std_advantages",
    "binary_divergence",
    "cispo_objective",
    "clipped_objective",
    "decoupled_scores",
    "divergence_masked_objective",
    "excluded_tokens",
    "explained_variance",
    "gae",
    "geometric_mean_objective",
    "group_std_advantages",
    "has_signal",
    "kl_divergence",
    "leave_one_out_advantages",
    "length_adaptive_lambda",
    "length_mask",
    "masked_mean",
    "masked_sequence_weights",
    "masked_std",
    "masked_sum",
    "maximum_likelihood_advantages",
    "pass_at_k",
    "pass_at_k_advantages",
    "sampled_advantages",
    "sampled_divergence",
    "sequence_ratio",
    "sequence_token_ratio",
    "shaped_objective",
    "soft_gated_objective",
    "token_logprobs",
    "token_ratio",
    "token_rewards",
    "truncated_weights",
    "turn_gae",
    "unscaled_advantages",
    "value_loss",
    "vocabulary_divergence",
    "whiten",
]
