"""Where the memory of a run goes, phase by phase."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import lightning.pytorch as pl
import torch

from grpo_lightning.algorithms import policy_module
from grpo_lightning.algorithms.metrics import stacked
from grpo_lightning.errors import ConfigError, OutOfMemory
from grpo_lightning.rollout import Experience, RunCallback

from .memory import GIB, Memory, Meter, biggest_tensors, meter_of

log = logging.getLogger(__name__)

NOTHING = Memory(0)
EVALUATIONS = {"validate": "validation", "sanity_check": "validation", "test": "test", "predict": "predict"}
"""Each evaluation counts as one phase, whatever phases it has: it is not part of a training step."""


@dataclass
class _Open:
    """A phase that has not ended, with its peak so far."""

    name: str
    peak: Memory = NOTHING


@dataclass
class _Row:
    """What is known of a phase: all its peaks, as sums, and the highest."""

    times: int = 0
    total: int = 0
    peak: Memory = NOTHING
    at_step: int = 0
    tensors: list[str] = field(default_factory=list)


class VRAMProfiler(RunCallback):
    """Measures the memory of every phase: rollout, verify, reference, value, update, and each evaluation as a whole.

    On CUDA that is what torch's allocator holds; on the CPU the resident memory of the process. The curves are
    ``memory/<phase>_peak_gib``, and after each step ``memory/allocated_gib``, on CUDA ``memory/reserved_gib`` and
    ``memory/fragmentation`` (at the step's peak) as well; over several devices that of the fullest. At the end of the
    run a table is printed, and written to ``memory.md`` in the run dir (not under ``fast_dev_run``). When the memory
    does not suffice, the sentence that ends the run names the shapes too, and ``memory.md`` says what was held.

    Args:
        snapshot: record allocations, and write ``memory_snapshot.pickle`` at the end of the run, or when the memory
            does not suffice, for https://pytorch.org/memory_viz. CUDA only; it costs time.
        biggest_tensors: list this many of the biggest tensors alive at the end of each phase; 0 lists none.
        inspect_step: the training step after whose phases they are listed, counted from 1 in this process.

    Raises:
        ConfigError: an option is out of its range, or another one measures this run already.
    """

    def __init__(self, snapshot: bool = False, biggest_tensors: int = 0, inspect_step: int = 1) -> None:
        if biggest_tensors < 0 or inspect_step < 1:
            raise ConfigError("VRAMProfiler: biggest_tensors must be at least 0, and inspect_step at least 1")
        self.snapshot = snapshot
        self.biggest_tensors = biggest_tensors
        self.inspect_step = inspect_step
        self._rows: defaultdict[str, _Row] = defaultdict(_Row)
        self._open: list[_Open] = []
        self._since_logged: dict[str, Memory] = {}
        self._steps = 0
        self._batch: Experience | None = None
        self._meter: Meter

    # -- phases -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        module = policy_module(pl_module, self)
        if any(isinstance(listener, VRAMProfiler) for listener in module.phases.listeners):
            raise ConfigError(
                "VRAMProfiler: listed twice, and each resets the peaks that the other reads: remove one of them from "
                "trainer.callbacks"
            )
        self._trainer, self._module = trainer, module
        self._device = trainer.strategy.root_device
        self._meter = meter_of(self._device)
        self._rows.clear()
        self._open.clear()
        self._steps = 0
        module.phases.listeners.append(self)
        if self.snapshot and self._device.type == "cuda":
            torch.cuda.memory._record_memory_history(max_entries=200_000)
        elif self.snapshot:
            log.warning("VRAMProfiler.snapshot: torch records allocations on CUDA only: none are on this device")

    def phase_started(self, name: str) -> None:
        self._see_peak()
        self._open.append(_Open(name))

    def phase_ended(self, name: str) -> None:
        self._see_peak()
        ended = self._open.pop()
        evaluated = self._evaluation()
        phase = evaluated or name
        self._since_logged[phase] = _higher(self._since_logged.get(phase, NOTHING), ended.peak)
        if not evaluated:
            self._count(phase, ended.peak)
            if self.biggest_tensors and self._steps + 1 == self.inspect_step:
                self._rows[phase].tensors = self._biggest(self.biggest_tensors)

    def _evaluation(self) -> str | None:
        stage = self._trainer.state.stage
        return None if stage is None else EVALUATIONS.get(stage.value)

    def _see_peak(self) -> None:
        """Give the peak since the last look to all phases that are open (phases may nest), and start anew."""
        peak = self._meter.peak()
        for phase in self._open:
            phase.peak = _higher(phase.peak, peak)
        self._meter.reset_peak()

    def _count(self, phase: str, peak: Memory) -> None:
        row = self._rows[phase]
        row.times += 1
        row.total += peak.allocated
        if peak.allocated > row.peak.allocated:
            row.peak, row.at_step = peak, self._trainer.global_step

    # -- curves -----------------------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        self._batch = batch if isinstance(batch, Experience) else None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self._steps += 1
        self._batch = None
        now, step = self._meter.now(), NOTHING
        values = {"allocated_gib": now.allocated / GIB}
        for phase, peak in self._since_logged.items():
            values[f"{phase}_peak_gib"] = peak.allocated / GIB
            step = _higher(step, peak)
        if self._device.type == "cuda":
            values |= {"reserved_gib": now.reserved / GIB, "fragmentation": step.fragmentation}
        self._since_logged.clear()
        self._log(values)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._log_evaluation("validation")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._log_evaluation("test")

    def on_predict_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._count("predict", self._since_logged.pop("predict", NOTHING))

    def _log_evaluation(self, split: str) -> None:
        peak = self._since_logged.pop(split, NOTHING)
        self._count(split, peak)
        self._log({f"{split}_peak_gib": peak.allocated / GIB})

    def _log(self, values: dict[str, float]) -> None:
        """Log the highest of all ranks: they go through the same phases."""
        here = stacked(list(values.values()), self._device)
        highest = self._trainer.strategy.reduce(here, reduce_op="max").tolist()
        for name, value in zip(values, highest, strict=True):
            self._module.log(f"memory/{name}", value)

    # -- the end ----------------------------------------------------------------------------------------------------

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not self._is_listening():
            return  # It was never set up, or has already reported how the run broke off.
        if self._rows:
            name = getattr(stage, "value", stage)
            file = self._write("\n".join([f"# Memory of `grpo {name}`", "", *self._table(), *self._lists()]))
            if trainer.is_global_zero:
                print("\n" + "\n".join([*self._table(), *(["", f"memory      {file}"] if file else [])]))
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Say what was being computed when memory ran out, and what held it."""
        if not self._is_listening():
            return  # The run broke off before this was set up: nothing has been measured.
        lines = ["# Memory of a run that broke off", "", *self._table(), *self._lists()]
        if isinstance(exception, OutOfMemory):
            evaluated = self._evaluation()
            exception.shapes = self._shapes(evaluated)
            held = [f"Held when memory ran out ({self._meter.now().allocated / GIB:.3f} GiB):"]
            lines += ["", str(exception), "", *held, *_tensor_table(self._biggest(max(self.biggest_tensors, 10)))]
        self._write("\n".join(lines))
        self._stop()

    def _shapes(self, evaluated: str | None) -> str:
        data = self.data_module
        if evaluated:
            return f"{evaluated}: {data.val_batch_size} prompts at a time, up to {data.val_sampling.cap} new tokens"
        budget = self._module.max_tokens_per_microbatch
        if self._batch is None:
            rows = -(-data.prompts_per_step // self._trainer.world_size) * data.group_size
            return f"{min(rows, data.rollout_rows_at_once or rows)} rows, up to {data.sampling.cap} new tokens"
        tokens = self._batch.tokens
        return (
            f"{len(tokens)} rows, prompts of up to {int(tokens.prompt_lengths_N.max())} tokens, completions of up to "
            f"{int(tokens.completion_lengths_N.max())}, the longest row {int(tokens.lengths_N.max())}, in "
            f"micro-batches of {budget} tokens"
        )

    def _table(self) -> list[str]:
        cuda = self._device.type == "cuda"
        more = " peak reserved GiB | fragmentation |" if cuda else ""
        lines = [
            f"memory, {self._steps} training steps; {self._meter.how}", "",
            f"| phase | times | peak GiB | mean of peaks GiB | highest at step |{more}",
            "|---|--:|--:|--:|--:|" + ("--:|--:|" if cuda else ""),
        ]  # fmt: skip
        for phase, row in self._rows.items():
            more = f" {row.peak.reserved / GIB:.3f} | {row.peak.fragmentation:.1%} |" if cuda else ""
            peak, mean = row.peak.allocated / GIB, row.total / row.times / GIB
            lines.append(f"| {phase} | {row.times} | {peak:.3f} | {mean:.3f} | {row.at_step} |{more}")
        return lines

    def _lists(self) -> list[str]:
        lines = []
        for phase, row in self._rows.items():
            if row.tensors:
                lines += ["", f"Biggest tensors after {phase}, training step {self.inspect_step}:"]
                lines += _tensor_table(row.tensors)
        return lines

    def _biggest(self, count: int) -> list[str]:
        tensors: dict[str, object] = {}
        states = {p: state for optimizer in self._trainer.optimizers for p, state in optimizer.state.items()}
        for name, parameter in self._module.named_parameters():
            tensors[name] = parameter
            tensors[f"gradient of {name}"] = parameter.grad
            tensors |= {f"{key} of {name}": value for key, value in states.get(parameter, {}).items()}
        names = {t.untyped_storage().data_ptr(): name for name, t in tensors.items() if isinstance(t, torch.Tensor)}
        return biggest_tensors(count, self._device, names)

    def _write(self, text: str) -> Path | None:
        """Write a file into the run dir, one per process. A resumed run keeps the files of earlier starts."""
        if getattr(self._trainer, "fast_dev_run", False):
            return None
        folder = Path(self._trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        rank = "" if self._trainer.is_global_zero else f"-rank{self._trainer.global_rank}"
        names = [f"memory{rank}.md", *(f"memory{rank}-{number}.md" for number in range(2, 10_000))]
        file = next(folder / name for name in names if not (folder / name).exists())
        file.write_text(text + "\n")
        return file

    def _is_listening(self) -> bool:
        return hasattr(self, "_module") and self in self._module.phases.listeners

    def _stop(self) -> None:
        self._module.phases.listeners.remove(self)
        if self.snapshot and self._device.type == "cuda":
            rank = "" if self._trainer.is_global_zero else f"-rank{self._trainer.global_rank}"
            file = Path(self._trainer.default_root_dir) / f"memory_snapshot{rank}.pickle"
            torch.cuda.memory._dump_snapshot(str(file))
            torch.cuda.memory._record_memory_history(enabled=None)
            log.info("memory snapshot for https://pytorch.org/memory_viz: %s", file)


def _higher(first: Memory, second: Memory) -> Memory:
    return Memory(max(first.allocated, second.allocated), max(first.reserved, second.reserved))


def _tensor_table(rows: list[str]) -> list[str]:
    return ["", "| MiB | shape | dtype | name |", "|--:|---|---|---|", *rows]
