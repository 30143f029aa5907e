"""The contract of shortcuts: tried against the plain way when a model loads, and switched off by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel


class Shortcut(ABC):
    """The same results in less time or memory.

    The plain way always exists. Whether a shortcut is used for a model is decided when the model loads, and again where
    rollouts run on another device or under another autocast. ``tests/speed/test_shortcuts.py`` compares every
    registered shortcut with the plain way.
    """

    name: ClassVar[str]
    """Its name in ``model.policy.without`` and in the log."""
    runs: ClassVar[str]
    """``module:function`` that runs if, and only if, the shortcut is used."""
    for_decoding: ClassVar[bool] = False
    """Whether it is used while rollouts decode, and its checks depend on device and autocast."""

    needs: ClassVar[type[Shortcut] | None] = None
    """The shortcut that it builds on, which comes before it: without that one it is not used."""

    def wrong_device(self, device_type: str) -> str | None:
        """Say in one clause which devices the shortcut is for, if this is not one of them. By default all are."""
        return None

    @abstractmethod
    def unsuitable(self, lm: PreTrainedModel) -> str | None:
        """Say in one clause why the shortcut cannot be used, as far as the architecture tells without weights."""

    def differs(self, lm: PreTrainedModel) -> str | None:
        """Try the shortcut against the plain way, and say in one clause how the two differ.

        Only shortcuts whose results depend on how a model is built need a trial.

        Args:
            lm: a suitable model, with its weights, in evaluation mode, without active adapters.
        """
        return None

    def install(self, lm: PreTrainedModel, give_up: Callable[[str], None]) -> None:  # noqa: B027 - most change no layer
        """Prepare the layers of a model that :meth:`why_not` has found nothing against.

        Args:
            lm: the model.
            give_up: to be called with the reason, in one clause, if the shortcut fails later and is used no more.
        """

    def why_not(self, lm: PreTrainedModel) -> str | None:
        """The reason in one clause why this model cannot use the shortcut, or ``None``: it can."""
        device_type = next(lm.parameters()).device.type
        return self.wrong_device(device_type) or self.unsuitable(lm) or self.differs(lm)

    @property
    def has_trial(self) -> bool:
        """Whether :meth:`differs` does anything."""
        return type(self).differs is not Shortcut.differs


def is_close(found: Tensor, plain: Tensor, tolerance: float) -> bool:
    """Whether the distance of two tensors is within a share of the plain one's norm. NaN is not."""
    return bool((found.float() - plain.float()).norm() <= tolerance * plain.float().norm())
