"""The flat keys of ``model``: the short form of the objectives of this package."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from grpo_lightning.errors import ConfigError
from grpo_lightning.objectives.base import Objective
from grpo_lightning.objectives.cispo import CISPO, RatioLevel
from grpo_lightning.objectives.clip import Clip
from grpo_lightning.objectives.gspo import GSPO

ObjectiveName = Literal["clip", "cispo"]

OWNERS = {
    "epsilon": "Clip", "epsilon_high": "Clip", "delta": "Clip", "ratio_level": "GSPO", "cispo_epsilon_high": "CISPO",
}  # fmt: skip
"""The class that a flat key is an option of."""


@dataclass(frozen=True)
class ShortForm:
    """The flat keys with their defaults, which are those of ``model``. See :class:`Clip` and :class:`CISPO`."""

    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None
    ratio_level: RatioLevel = "token"
    cispo_epsilon_high: float = 5.0

    def objective(self, chosen: ObjectiveName | Objective) -> Objective:
        """The objective of the key ``objective``: the one given, or the one that its name and the flat keys say.

        Raises:
            ConfigError: a flat key is out of its range, or is set although the objective is given, or does not read it.
        """
        if isinstance(chosen, Objective):
            self._refuse_keys_beside(type(chosen).__name__)
            return chosen
        if chosen not in get_args(ObjectiveName):
            raise ConfigError(f"model: objective is {chosen!r}, but must be 'clip', 'cispo' or an Objective")
        if self.ratio_level not in get_args(RatioLevel):
            raise ConfigError(f"model: ratio_level is {self.ratio_level!r}, but must be one of 'token', 'sequence'")
        self._refuse_keys_of("CISPO" if chosen == "clip" else "Clip", chosen)
        if chosen == "cispo":
            if self.cispo_epsilon_high <= 0:
                raise ConfigError(f"model: cispo_epsilon_high must be positive, but is {self.cispo_epsilon_high}")
            return CISPO(self.cispo_epsilon_high, self.ratio_level)
        clip = Clip if self.ratio_level == "token" else GSPO
        try:
            return clip(self.epsilon, self.epsilon_high, self.delta)
        except ConfigError as error:
            raise ConfigError(f"model: {str(error).removeprefix(f'{clip.__name__}: ')}") from error

    def _changed(self) -> list[str]:
        """The keys that are set; a config that a run saved may hold a key at its default."""
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]

    def _refuse_keys_of(self, owner: str, chosen: str) -> None:
        for key in self._changed():
            if OWNERS[key] == owner:
                hint = "set cispo_epsilon_high, its cap" if key == "epsilon_high" else "remove it"
                raise ConfigError(
                    f"model: {key} belongs to objective={owner.lower()!r}, but the objective is {chosen!r}: {hint}"
                )

    def _refuse_keys_beside(self, name: str) -> None:
        for key in self._changed():
            raise ConfigError(
                f"model.{key}: {key} belongs to {OWNERS[key]}, but model.objective is a class ({name}): set its "
                "options under model.objective.init_args"
            )
