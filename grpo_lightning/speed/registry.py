"""All shortcuts by name, and those that one policy uses."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from grpo_lightning.speed.base import Shortcut
from grpo_lightning.speed.caches import EarlyJoins
from grpo_lightning.speed.compiled import CompiledLayers
from grpo_lightning.speed.direct import DirectDecoding
from grpo_lightning.speed.graphs import GraphedDecoding
from grpo_lightning.speed.packed import PackedWeights
from grpo_lightning.speed.recompute import RecomputedActivations
from grpo_lightning.speed.shared_beginning import SharedBeginnings
from grpo_lightning.speed.shared_prompt import SharedPrompts
from grpo_lightning.speed.vocabulary import InPlaceGradients, KeptProbabilities

log = logging.getLogger(__name__)

SHORTCUTS: tuple[Shortcut, ...] = (
    RecomputedActivations(),
    InPlaceGradients(),
    KeptProbabilities(),
    SharedPrompts(),
    CompiledLayers(),
    DirectDecoding(),
    GraphedDecoding(),
    PackedWeights(),
    SharedBeginnings(),
    EarlyJoins(),
)
"""In the order in which they are installed and logged."""

NAMES = tuple(shortcut.name for shortcut in SHORTCUTS)

SWITCHED_OFF = "switched off by model.policy.without"


@dataclass(frozen=True)
class _Context:
    """What decides on decoding shortcuts besides the model."""

    device: str
    autocast: torch.dtype | None

    @classmethod
    def now(cls, lm: PreTrainedModel) -> _Context:
        device = lm.device.type
        enabled = device != "meta" and torch.is_autocast_enabled(device)
        return cls(device, torch.get_autocast_dtype(device) if enabled else None)


class Shortcuts:
    """Which shortcuts a model uses, and why not the others.

    Args:
        lm: the model, in evaluation mode, without active adapters. Shortcuts are installed in it.
        ruled_out: reasons by name for shortcuts that must not be used.
        has_weights: the model can be run, so shortcuts with a trial are tried.
    """

    def __init__(self, lm: PreTrainedModel, ruled_out: Mapping[str, str], has_weights: bool = True) -> None:
        self._ruled_out = dict(ruled_out)
        self._has_weights = has_weights
        self._device: str | None = None
        self._context = _Context.now(lm)
        self._why_not: dict[str, str | None] = {}
        for shortcut in SHORTCUTS:
            self._why_not[shortcut.name] = self._reason(shortcut, lm)
            if self.uses(type(shortcut)):
                shortcut.install(lm, partial(self.rule_out, type(shortcut)))

    def uses(self, shortcut: type[Shortcut]) -> bool:
        """Whether the model uses a shortcut."""
        return self._why_not[shortcut.name] is None

    def rule_out(self, shortcut: type[Shortcut], reason: str) -> None:
        """Use a shortcut no more, and warn of it."""
        self._ruled_out[shortcut.name] = self._why_not[shortcut.name] = reason
        log.warning(next(self._line(one) for one in SHORTCUTS if type(one) is shortcut))

    def install_in(self, lm: PreTrainedModel) -> None:
        """Install in another model, such as a critic's, what is used in this one and needs no trial of the whole."""
        for shortcut in SHORTCUTS:
            if self.uses(type(shortcut)) and not isinstance(shortcut, CompiledLayers):
                shortcut.install(lm, partial(self.rule_out, type(shortcut)))

    def plan_for(self, device_type: str, lm: PreTrainedModel) -> None:
        """Decide as on another device than that of a model without weights."""
        self._device = device_type
        for shortcut in SHORTCUTS:
            if shortcut.for_decoding:
                self._why_not[shortcut.name] = self._reason(shortcut, lm)

    def check_decoding(self, lm: PreTrainedModel) -> None:
        """Repeat the checks of decoding shortcuts if the device or autocast has changed since the last ones."""
        context = _Context.now(lm)
        if context == self._context:
            return
        self._context = context
        for shortcut in SHORTCUTS:
            if shortcut.for_decoding and (reason := self._reason(shortcut, lm)) != self._why_not[shortcut.name]:
                self._why_not[shortcut.name] = reason
                log.info(self._line(shortcut))

    def lines(self) -> list[str]:
        """One line per shortcut: used, or why not."""
        return [self._line(shortcut) for shortcut in SHORTCUTS]

    def _reason(self, shortcut: Shortcut, lm: PreTrainedModel) -> str | None:
        if shortcut.name in self._ruled_out:
            return self._ruled_out[shortcut.name]
        device = self._device or lm.device.type
        reason = None if device == "meta" else shortcut.wrong_device(device)
        reason = reason or shortcut.unsuitable(lm)
        if reason is None and shortcut.needs is not None and not self.uses(shortcut.needs):
            reason = f"it needs {shortcut.needs.name}, which is not used"
        return shortcut.differs(lm) if reason is None and self._has_weights else reason

    def _line(self, shortcut: Shortcut) -> str:
        reason = self._why_not[shortcut.name]
        if reason is not None:
            return f"shortcut {shortcut.name}: not used: {reason}"
        untried = shortcut.has_trial and not self._has_weights
        return f"shortcut {shortcut.name}: used" + (", if its trial succeeds when the model loads" if untried else "")
