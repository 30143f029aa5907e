"""The frozen policy of the KL term: the base of the adapter, a second adapter, or a copy of the model."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grpo_lightning.models.adapters import (
    POLICY,
    REFERENCE,
    active_adapter,
    adapter_tensors,
    adapters_off,
    add_adapter,
    copy_adapter,
)
from grpo_lightning.models.mixing import mix

ReferenceForm = Literal["none", "adapter-off", "snapshot", "copy"]


class Reference(nn.Module, ABC):
    """What the policy is compared with.

    Args:
        model: the policy's model, with its adapter if it has one. It is not part of the reference's own modules.
    """

    form: ClassVar[ReferenceForm]

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._policy_model = (model,)  # in a tuple, where torch does not look for submodules
        self.has_moved = False

    @abstractmethod
    def model(self) -> AbstractContextManager[PreTrainedModel]:
        """The reference's causal LM, for forward passes inside that need no gradients."""

    def move(self, alpha: float = 1.0) -> Reference:
        """Move to the policy: ``reference <- alpha * policy + (1 - alpha) * reference`` (arXiv 2404.09656).

        With ``alpha`` 1 the reference then equals the policy bit for bit. Below 1 an adapter becomes the nearest of its
        rank to the mix.

        Returns:
            The reference to use from now on, which may be another object.

        Raises:
            RuntimeError: the policy keeps no reference.
        """
        movable = self._movable()
        with torch.no_grad():
            mix(movable.tensors(), movable.policy_tensors(), alpha)
        movable.has_moved = True
        return movable

    def state(self) -> dict[str, Tensor]:
        """The tensors for a checkpoint if the reference has moved; else none, since it is what was loaded."""
        return self.tensors() if self.has_moved else {}

    def loaded(self, state: dict[str, Tensor]) -> Reference:
        """The reference with the state of a checkpoint. It may be another object; an empty state changes nothing."""
        if not state:
            return self
        movable = self._movable()
        with torch.no_grad():
            for name, tensor in movable.tensors().items():
                tensor.copy_(state[name])
        movable.has_moved = True
        return movable

    def _movable(self) -> Reference:
        """This reference in a form whose tensors are separate from the policy's."""
        return self

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The reference's own tensors by name."""

    @abstractmethod
    def policy_tensors(self) -> dict[str, Tensor]:
        """The tensors of the policy that they move to, under the same names."""


class NoReference(Reference):
    """Nothing to compare with: no KL is wanted."""

    form = "none"

    def model(self) -> AbstractContextManager[PreTrainedModel]:
        raise RuntimeError("this policy keeps no reference: model.policy.reference is none, or beta is 0")

    def loaded(self, state: dict[str, Tensor]) -> Reference:
        """Itself: a run without a KL ignores the reference of the run that it continues."""
        return self

    def _movable(self) -> Reference:
        self.model()
        return self

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def policy_tensors(self) -> dict[str, Tensor]:
        return {}


class CopyReference(Reference):
    """A frozen copy of a model that is trained in full."""

    form = "copy"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.lm = cast(PreTrainedModel, copy.deepcopy(model).requires_grad_(False))

    @contextmanager
    def model(self) -> Iterator[PreTrainedModel]:
        with torch.no_grad():
            yield self.lm

    def tensors(self) -> dict[str, Tensor]:
        return {name: parameter.data for name, parameter in self.lm.named_parameters()}

    def policy_tensors(self) -> dict[str, Tensor]:
        return {name: parameter.data for name, parameter in self._policy_model[0].named_parameters()}


class AdapterReference(Reference):
    """A reference on the base that the policy's adapter is on."""

    @property
    def peft_model(self) -> Any:
        return self._policy_model[0]

    def policy_tensors(self) -> dict[str, Tensor]:
        return adapter_tensors(self.peft_model, POLICY)


class SnapshotReference(AdapterReference):
    """A second, frozen adapter with the values that the policy's had at the start.

    Args:
        model: the policy's model.
        of_base: start as the base instead: the adapter does nothing.
    """

    form = "snapshot"

    def __init__(self, model: nn.Module, of_base: bool = False) -> None:
        super().__init__(model)
        add_adapter(model, REFERENCE)
        copy_adapter(model, POLICY, REFERENCE)
        if of_base:
            for name, tensor in self.tensors().items():
                if "lora_B" in name or "lora_embedding_B" in name:
                    tensor.zero_()

    @contextmanager
    def model(self) -> Iterator[PreTrainedModel]:
        with torch.no_grad(), active_adapter(self.peft_model, REFERENCE):
            yield self.peft_model.get_base_model()

    def tensors(self) -> dict[str, Tensor]:
        return adapter_tensors(self.peft_model, REFERENCE)


class AdapterOffReference(AdapterReference):
    """The base itself. When it moves, it becomes a snapshot: the base stays what it is."""

    form = "adapter-off"

    @contextmanager
    def model(self) -> Iterator[PreTrainedModel]:
        with torch.no_grad(), adapters_off(self.peft_model):
            yield self.peft_model.get_base_model()

    def _movable(self) -> Reference:
        return SnapshotReference(self.peft_model, of_base=True)

    def tensors(self) -> dict[str, Tensor]:
        return {}


def make_reference(model: nn.Module, form: str, loaded_adapter: bool) -> Reference:
    """The reference of a policy as it starts.

    Args:
        model: the policy's model.
        form: one of :data:`ReferenceForm`, or ``auto``: the start of the policy without a second model, if possible.
        loaded_adapter: the policy's adapter was loaded, so it is not the base that the policy starts from.
    """
    if form == "auto":
        form = "copy" if not hasattr(model, "peft_config") else "snapshot" if loaded_adapter else "adapter-off"
    kinds = {kind.form: kind for kind in (NoReference, AdapterOffReference, SnapshotReference, CopyReference)}
    return kinds[cast(ReferenceForm, form)](model)
