"""The weight of the entropy in the objective: fixed, scheduled, or moved towards a target."""

from __future__ import annotations

from abc import ABC, abstractmethod

from grpo_lightning.errors import ConfigError


class EntropyBonus(ABC):
    """Adds ``coefficient * H(pi(. | y_<t))`` to the objective of every token, whatever its advantage.

    The entropy is that of the whole distribution over the next token at the sampling temperature, in nats, and its
    gradient is exact. It is aggregated as the objective is. A3C, https://arxiv.org/abs/1602.01783, section 4; PPO,
    https://arxiv.org/abs/1707.06347, eq. 9. A subclass writes :meth:`coefficient`.

    Where there is a bonus, whatever its weight, groups without a signal run through the policy, too:
    ``policy/entropy`` is then the mean over all completions that are not excluded, in every step.
    """

    @abstractmethod
    def coefficient(self, step: int) -> float:
        """The weight of the entropy in a training step.

        Args:
            step: training steps done before.
        """

    def measured(self, entropy: float) -> None:  # noqa: B027 - a schedule measures nothing
        """The mean entropy of a training step, over all ranks (``policy/entropy``, nats per token)."""

    def state(self) -> dict[str, float]:
        """What a resumed run needs."""
        return {}

    def load(self, state: dict[str, float]) -> None:  # noqa: B027 - a schedule has no state
        """Continue from an earlier :meth:`state`."""


class ScheduledEntropy(EntropyBonus):
    """A fixed coefficient, or one that moves in a straight line from ``coef`` to ``final_coef``.

    Args:
        coef: the coefficient, at first.
        final_coef: the coefficient after ``steps`` training steps, and from then on; ``None``: ``coef``.
        steps: training steps from the one to the other.

    Raises:
        ConfigError: an option is out of its range, or ``final_coef`` and ``steps`` are not given together.
    """

    def __init__(self, coef: float = 1e-3, final_coef: float | None = None, steps: int | None = None) -> None:
        final = coef if final_coef is None else final_coef
        if not (abs(coef) < float("inf") and abs(final) < float("inf")):
            raise ConfigError(
                f"ScheduledEntropy: coef and final_coef must be finite numbers, but are {coef} and {final_coef}"
            )
        if (final_coef is None) != (steps is None):
            raise ConfigError("ScheduledEntropy: a schedule needs both final_coef and steps")
        if steps is not None and steps < 1:
            raise ConfigError(f"ScheduledEntropy: steps must be at least 1, but is {steps}")
        self.coef = coef
        self.final_coef = final_coef
        self.steps = steps

    def coefficient(self, step: int) -> float:
        if self.final_coef is None or self.steps is None:
            return self.coef
        return self.coef + (self.final_coef - self.coef) * min(step / self.steps, 1.0)


class TargetEntropy(EntropyBonus):
    """A coefficient ``c`` that grows while the entropy ``e`` is below a target, and counts only there.

    ``alpha_k = c_k [e_k <= target]``, ``c_k+1 = c_k + delta`` if ``e_k < target``, else ``c_k - delta``, and
    ``c_0 = 0``. Skywork-OR1, https://arxiv.org/abs/2505.22312, adaptive entropy control. As in the authors' code, ``c``
    is kept from 0 to ``max_coef``, and ``e_k`` is the entropy of the training step before.

    Args:
        target: nats per token; compare with ``policy/entropy`` at the start of a run.
        delta: how far ``c`` moves per training step.
        max_coef: the largest coefficient.

    Raises:
        ConfigError: an option is out of its range.
    """

    def __init__(self, target: float = 0.2, delta: float = 1e-4, max_coef: float = 5e-3) -> None:
        for name, value in {"target": target, "delta": delta, "max_coef": max_coef}.items():
            if not 0 < value < float("inf"):
                raise ConfigError(f"TargetEntropy: {name} must be above 0, but is {value}")
        self.target = target
        self.delta = delta
        self.max_coef = max_coef
        self._coef = 0.0
        self._counts = False

    def coefficient(self, step: int) -> float:
        return self._coef if self._counts else 0.0

    def measured(self, entropy: float) -> None:
        moved = self._coef + (self.delta if entropy < self.target else -self.delta)
        self._coef = min(max(moved, 0.0), self.max_coef)
        self._counts = entropy <= self.target

    def state(self) -> dict[str, float]:
        return {"coef": self._coef, "counts": float(self._counts)}

    def load(self, state: dict[str, float]) -> None:
        self._coef, self._counts = state["coef"], bool(state["counts"])
