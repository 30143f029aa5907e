"""Shortcuts in the two largest weights, those of the embedding and of the output head.

Both run the project's own operations on torch's own modules whatever the model is, so they need no trial. They are
implemented in :mod:`grpo_lightning.functional.in_place` and :mod:`grpo_lightning.functional.logprobs`.
"""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedModel

from grpo_lightning.functional import InPlaceEmbedding
from grpo_lightning.speed.base import Shortcut


class InPlaceGradients(Shortcut):
    """Gradients of embedding and head are added to ``weight.grad`` where they arise. The plain way is autograd's."""

    name = "in_place_gradients"
    runs = "grpo_lightning.functional.in_place:adding_in_place"

    def unsuitable(self, lm: PreTrainedModel) -> str | None:
        weights = [module.weight for module in (lm.get_input_embeddings(), lm.get_output_embeddings()) if module]
        return None if any(weight.requires_grad for weight in weights) else "the vocabulary's weights are frozen"

    def install(self, lm: PreTrainedModel, give_up: Callable[[str], None]) -> None:
        words = lm.get_input_embeddings()
        if InPlaceEmbedding.replaces(words):
            words.__class__ = InPlaceEmbedding


class KeptProbabilities(Shortcut):
    """The head's last chunk of probabilities is kept for the backward pass. The plain way computes it again."""

    name = "kept_probabilities"
    runs = "grpo_lightning.functional.logprobs:_grad_from_probabilities"

    def unsuitable(self, lm: PreTrainedModel) -> str | None:
        head = lm.get_output_embeddings()
        if head is not None and not head.weight.requires_grad:
            return "the output head is frozen, so its forward pass computes the gradient"
        if getattr(lm.config.get_text_config(), "final_logit_softcapping", None) is not None:
            return "the slope of the model's final softcap needs the logits"
        return None
