"""The phases of a training step by what each takes."""

from __future__ import annotations

from dataclasses import dataclass

from grpo_lightning.commands.plan.meter import HOST, MemoryMeter

BETWEEN = "other"
"""What a step does outside of its phases."""


@dataclass(frozen=True)
class PhaseMemory:
    """The bytes of a phase's parts at the moment when they are most.

    Args:
        name: the phase.
        parts: bytes on the device by part.
        host: bytes that are kept in host memory beside them.
    """

    name: str
    parts: dict[str, int]
    host: int = 0

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def peak_of(meter: MemoryMeter, name: str) -> PhaseMemory:
    """The peak since the last :meth:`MemoryMeter.reset_peak`, as a phase of this name."""
    parts = {part: size for part, size in meter.peak.items() if size and part != HOST}
    return PhaseMemory(name, parts, meter.live.get(HOST, 0))


class Peaks:
    """Takes the peak of each phase of a step, and of what is done between them: a listener of ``Phases``."""

    def __init__(self, meter: MemoryMeter) -> None:
        self.meter = meter
        self._peaks: dict[str, PhaseMemory] = {}
        self._open = [BETWEEN]
        self._busy: set[str] = set()
        self._at_start: list[int] = []

    def phase_started(self, name: str) -> None:
        self._take()
        self._open.append(name)
        self._at_start.append(self.meter.total)

    def phase_ended(self, name: str) -> None:
        self._take()
        self._open.pop()
        if self._peaks[name].total > self._at_start.pop():
            self._busy.add(name)

    def found(self) -> list[PhaseMemory]:
        """The phases that made something; what is done between them only where it takes the most."""
        self._take()
        between = self._peaks.pop(BETWEEN)
        phases = [phase for name, phase in self._peaks.items() if name in self._busy]
        return [*phases, between] if all(between.total > phase.total for phase in phases) else phases

    def _take(self) -> None:
        """Give the peak since the last look to all phases that are open (phases may nest), and start a new one."""
        for name in self._open[1:] or self._open:
            peak = peak_of(self.meter, name)
            self._peaks[name] = max(self._peaks.get(name, peak), peak, key=lambda phase: phase.total)
        self.meter.reset_peak()
