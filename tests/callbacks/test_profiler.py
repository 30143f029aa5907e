"""VRAMProfiler: what it measures, logs and writes, and what it says when the memory does not suffice."""

from __future__ import annotations

import gc
import logging
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch._subclasses import FakeTensorMode

from grpo_lightning.__main__ import main
from grpo_lightning.callbacks import RunCheckpoint, VRAMProfiler
from grpo_lightning.callbacks.memory import (
    HighWaterMeter,
    Memory,
    Meter,
    ResidentMeter,
    biggest_tensors,
    meter_of,
)
from grpo_lightning.errors import ConfigError, OutOfMemory, RunError
from grpo_lightning.phases import Phases
from grpo_lightning.rollout import RolloutDataModule
from tests.toy import ToyTask, Watch, fit, grpo, rollouts, same, trainer

MIB = 2**20
CPU = torch.device("cpu")


class Hog(pl.Callback):
    """Takes memory whenever the model computes in one phase: a forward pass that is too big for the machine.

    Args:
        phase: in which.
        numbers: how many float32 it takes; kept until the forward pass is over.
    """

    def __init__(self, phase: str, numbers: int) -> None:
        self.phase = phase
        self.numbers = numbers
        self.now: list[str] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.phases.listeners.append(self)
        for lm in (pl_module.policy.lm, getattr(pl_module.policy.reference, "lm", None)):
            if lm is not None:
                lm.get_decoder().register_forward_pre_hook(self.take)

    def phase_started(self, name: str) -> None:
        self.now.append(name)

    def phase_ended(self, name: str) -> None:
        self.now.pop()

    def take(self, *_: Any) -> None:
        if self.now and self.now[-1] == self.phase:
            torch.empty(self.numbers).fill_(1.0)


def resident() -> Meter:
    meter = meter_of(CPU)
    if not isinstance(meter, ResidentMeter):
        pytest.skip("this system cannot reset the peak of resident memory")
    return meter


def touch(size: int) -> None:
    """Take so many bytes from the system, and give them back. An allocator might take them from what it has kept."""
    with mmap.mmap(-1, size) as pages:
        torch.frombuffer(pages, dtype=torch.uint8).fill_(1)


# -- measuring --------------------------------------------------------------------------------------------------------


def test_the_peak_of_resident_memory_is_seen_and_can_be_reset() -> None:
    meter = resident()
    before = meter.now().allocated
    touch(64 * MIB)
    after = meter.peak().allocated
    assert after - before > 60 * MIB
    meter.reset_peak()
    assert meter.peak().allocated < after - 50 * MIB


def test_where_the_peak_cannot_be_reset_the_highest_so_far_is_told_as_such() -> None:
    meter = HighWaterMeter()
    touch(64 * MIB)
    first = meter.peak().allocated
    meter.reset_peak()
    assert meter.peak().allocated >= first > 50 * MIB
    assert "never goes down" in meter.how


def test_fragmentation_is_the_share_of_the_reserved_memory_that_is_not_allocated() -> None:
    assert Memory(6, 8).fragmentation == 0.25
    assert Memory(6).fragmentation == 0


def test_the_biggest_tensors_are_found_once_with_their_names() -> None:
    # Larger than what other tests may have left alive; zeros that nobody writes to take no memory.
    big = torch.zeros(8000, 3000)
    views = [big[:10], big.T]
    small = torch.zeros(8000, 3000, dtype=torch.bfloat16)
    with FakeTensorMode():
        fake = torch.zeros(80_000, 3000)
    rows = biggest_tensors(2, CPU, {big.data_ptr(): "the big one"})
    assert rows[0] == "| 91.55 | 8000 x 3000 | torch.float32 | the big one |" or "3000 x 8000" in rows[0]
    assert rows[1] == "| 45.78 | 8000 x 3000 | torch.bfloat16 |  |"
    assert len(views) == len(rows) == 2
    assert small.numel()
    assert fake.numel()


def test_the_peak_of_a_phase_is_its_own_and_an_inner_phase_counts_for_both(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    class Script:
        """A meter that reads from a list: the peak of each stretch between two readings."""

        how = "a script"

        def __init__(self, peaks: list[int]) -> None:
            self.peaks = peaks

        def now(self) -> Memory:
            return Memory(1)

        def peak(self) -> Memory:
            return Memory(self.peaks.pop(0))

        def reset_peak(self) -> None: ...

    profiler, phases = VRAMProfiler(), Phases()
    profiler.setup(trainer(tmp_path, 1), grpo(tiny_model("llama")), "fit")
    # Before; in outer, before inner; in inner; in outer, after inner; between; in next.
    profiler._meter = Script([90, 5, 40, 7, 80, 3])
    phases.listeners = [profiler]
    with phases("outer", CPU), phases("inner", CPU):
        pass
    with phases("next", CPU):
        pass
    assert {name: row.peak.allocated for name, row in profiler._rows.items()} == {"inner": 40, "outer": 40, "next": 3}


@pytest.mark.parametrize("phase", ["rollout", "reference", "update"])
def test_the_curves_show_which_phase_took_the_memory(
    tiny_model: Callable[[str], str], tmp_path: Path, phase: str
) -> None:
    resident()
    gc.collect()
    # Twice what is asked for: what earlier tests have used may be given back in between.
    watch, hog = Watch(), Hog(phase, 512 * MIB // 4)
    fit(tmp_path, grpo(tiny_model("lfm2"), beta=0.1), 2, callbacks=[VRAMProfiler(), hog, watch])
    peaks = {name: watch.logged[-1][f"memory/{name}_peak_gib"] for name in ("rollout", "verify", "reference", "update")}
    highest = peaks.pop(phase)
    assert all(highest > other + 0.2 for other in peaks.values())
    assert 0 < watch.logged[-1]["memory/allocated_gib"] < highest


def test_profiling_changes_nothing_and_evaluations_stand_apart(
    model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"limit_val_batches": 1, "val_check_interval": 1}
    plain = fit(tmp_path, grpo(model_path), 3, **options)
    watch, profiler = Watch(), VRAMProfiler()
    module = grpo(model_path)
    assert same(plain, fit(tmp_path, module, 3, callbacks=[profiler, watch], **options))
    assert "memory/validation_peak_gib" in watch.logged[-1]
    out, text = capsys.readouterr().out, (tmp_path / "memory.md").read_text()
    assert f"memory      {tmp_path}/memory.md" in out
    for phase in ("rollout", "verify", "reference", "update", "validation"):
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {phase} |")]
        assert line in out
        assert line.split("|")[2].strip() == "3", "three steps, and three validations apart from them"
    assert "Biggest tensors" not in text
    assert module.phases.listeners == [], "nothing is left behind"
    # A second run in the same dir goes beside the first.
    trainer(tmp_path, 1, callbacks=[profiler], limit_test_batches=1).test(module, datamodule=rollouts())
    assert "| test | 1 |" in (tmp_path / "memory-2.md").read_text()
    assert (tmp_path / "memory.md").read_text() == text


def test_the_biggest_tensors_are_listed_after_each_phase_of_one_step(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    profiler = VRAMProfiler(biggest_tensors=3, inspect_step=2)
    fit(tmp_path, grpo(tiny_model("llama"), beta=0.1), 2, callbacks=[profiler])
    text = (tmp_path / "memory.md").read_text()
    for phase in ("rollout", "verify", "reference", "update"):
        part = text.split(f"Biggest tensors after {phase}, training step 2:")[1].split("Biggest tensors")[0]
        rows = [line for line in part.splitlines() if line.startswith("| ") and "MiB" not in line]
        assert len(rows) == 3
    # What earlier tests have left behind may be bigger: the names are looked for in a longer list.
    fit(tmp_path, grpo(tiny_model("llama")), 1, callbacks=[VRAMProfiler(biggest_tensors=5000)])
    after = (tmp_path / "memory-2.md").read_text().split("Biggest tensors after update, training step 1:")[1]
    for name in ("", "gradient of ", "exp_avg_sq of "):
        assert f"| 0.03 | 264 x 32 | torch.float32 | {name}policy.model.model.embed_tokens.weight |" in after
    profiler = VRAMProfiler(biggest_tensors=3, inspect_step=9)
    fit(tmp_path, grpo(tiny_model("llama")), 2, callbacks=[profiler])
    assert "Biggest tensors" not in (tmp_path / "memory-3.md").read_text()


def test_a_snapshot_on_the_cpu_says_that_there_is_none(
    tiny_model: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for snapshot in (True, False):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "grpo_lightning"):
            fit(tmp_path, grpo(tiny_model("llama")), 1, callbacks=[VRAMProfiler(snapshot=snapshot)])
        assert ("torch records allocations on CUDA only" in caplog.text) is snapshot
    assert not (tmp_path / "memory_snapshot.pickle").exists()


@pytest.mark.cuda
def test_on_cuda_there_are_a_snapshot_and_the_allocator_s_curves(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    watch = Watch()
    callbacks = [VRAMProfiler(snapshot=True, biggest_tensors=2), watch]
    fit(tmp_path, grpo(tiny_model("llama"), beta=0.1), 2, callbacks=callbacks, accelerator="cuda", devices=1)
    assert (tmp_path / "memory_snapshot.pickle").stat().st_size > 1000
    logged = watch.logged[-1]
    assert 0 < logged["memory/allocated_gib"] <= logged["memory/update_peak_gib"]
    assert logged["memory/reserved_gib"] >= logged["memory/allocated_gib"]
    assert 0 <= logged["memory/fragmentation"] < 1
    assert logged["memory/update_peak_gib"] == pytest.approx(logged["memory/update_peak_gib"])
    assert "fragmentation" in (tmp_path / "memory.md").read_text()


@pytest.mark.parametrize("options", [{"biggest_tensors": -1}, {"inspect_step": 0}])
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        VRAMProfiler(**options)


def test_two_processes_log_the_fuller_one(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    class Own(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            logged = float(trainer.callback_metrics["memory/allocated_gib"])
            (tmp_path / f"{trainer.global_rank}").write_text(str(logged))

    pl.seed_everything(0, verbose=False)
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp_fork", "limit_val_batches": 1, "val_check_interval": 1}
    lightning = trainer(tmp_path, 2, callbacks=[VRAMProfiler(), Own()], **options)
    lightning.fit(grpo(tiny_model("llama")), datamodule=rollouts(prompts_per_step=5))
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() != "0.0"
    assert {"memory.md", "memory-rank1.md"} <= {path.name for path in tmp_path.iterdir()}


# -- when the memory does not suffice ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "shapes", "fix"),
    [
        ("rollout", "12 rows, up to 16 new tokens", "lower data.rollout_rows_at_once"),
        ("reference", "12 rows, prompts of up to", "lower model.max_tokens_per_microbatch"),
        ("update", "in micro-batches of 4321 tokens", "model.policy.gradient_checkpointing"),
    ],
)
def test_out_of_memory_names_phase_shapes_and_setting_and_loses_nothing(
    tiny_model: Callable[[str], str], tmp_path: Path, phase: str, shapes: str, fix: str
) -> None:
    module = grpo(tiny_model("lfm2"), beta=0.1, max_tokens_per_microbatch=4321)

    class HogLater(Hog):
        """Only in the second step."""

        def take(self, *_: Any) -> None:
            if module.global_step == 1:
                super().take()

    callbacks = [VRAMProfiler(), HogLater(phase, 1 << 60), RunCheckpoint()]
    with pytest.raises(OutOfMemory) as caught:
        fit(tmp_path, module, 3, callbacks=callbacks, enable_checkpointing=True)
    assert isinstance(caught.value, RunError)
    assert "can't allocate memory" in str(caught.value.__cause__)
    sentence = str(caught.value)
    assert sentence.startswith(f"out of memory in the {phase} phase (")
    assert shapes in sentence
    assert fix in sentence
    text = (tmp_path / "memory.md").read_text()
    assert sentence in text
    held = text.split("Held when memory ran out")[1]
    assert len([line for line in held.splitlines() if "torch." in line]) == 10
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 1


def test_without_the_profiler_the_phase_and_the_setting_are_named_too(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    with pytest.raises(OutOfMemory, match=r"^out of memory in the update phase: lower model.max_tokens_per_microbatch"):
        fit(tmp_path, grpo(tiny_model("llama")), 1, callbacks=[Hog("update", 1 << 60)])


def test_other_errors_of_a_phase_stay_what_they_are() -> None:
    for error in (RuntimeError("shapes differ"), ValueError("no"), RunError("enough"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, Phases()("update", CPU):
            raise error
        assert caught.value is error
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("CUDA error: out of memory"),
    ):
        with pytest.raises(OutOfMemory), Phases()("value", CPU):
            raise error


def test_an_evaluation_without_memory_names_its_batch(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    class HogValidation(Hog):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            self.on_train_start(trainer, pl_module)

    options: dict[str, Any] = {"callbacks": [VRAMProfiler(), HogValidation("rollout", 1 << 60)], "limit_val_batches": 1}
    with pytest.raises(OutOfMemory, match=r"\(validation: 5 prompts at a time, up to 16 new tokens\).*val_batch_size"):
        trainer(tmp_path, 1, **options).validate(grpo(tiny_model("llama")), datamodule=rollouts(val_batch_size=5))


def test_the_command_ends_with_one_sentence_and_1(
    tiny_model: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [
        "fit", "--run_dir", str(tmp_path), "--trainer.accelerator", "cpu", "--trainer.max_steps", "1",
        "--trainer.limit_val_batches", "0", "--model", "GRPOModule", "--model.policy.path", tiny_model("llama"),
        "--model.verifiers", "[{class_path: MathVerifier}]", "--model.beta", "0.1", "--data.task", "Arithmetic",
        "--data.sampling.max_new_tokens", "4", "--health_check.prompts", "0", "--trainer.callbacks",
        "[{class_path: VRAMProfiler}, {class_path: tests.callbacks.test_profiler.Hog, init_args: "
        "{phase: update, numbers: 1152921504606846976}}]",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 1
    err = capsys.readouterr().err
    assert "grpo: stopped: out of memory in the update phase (64 rows, prompts of up to" in err
    assert "Traceback" not in err
    assert "out of memory in the update phase" in (tmp_path / "memory.md").read_text()


# -- what is none of its business -------------------------------------------------------------------------------------


def test_an_error_before_it_is_set_up_is_the_one_that_is_seen(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    class Broken(RolloutDataModule):
        def setup(self, stage: str) -> None:
            raise OSError("the data is gone")

    data = Broken(task=ToyTask(), prompts_per_step=3, group_size=4)
    with pytest.raises(OSError, match="the data is gone"):
        trainer(tmp_path, 1, callbacks=[VRAMProfiler()]).fit(grpo(tiny_model("llama")), datamodule=data)
    assert not list(tmp_path.glob("memory*"))


def test_it_stops_once_and_two_of_them_are_refused(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    module, profiler, lightning = grpo(tiny_model("llama")), VRAMProfiler(), trainer(tmp_path, 1)
    profiler.setup(lightning, module, "fit")
    with pytest.raises(ConfigError, match="VRAMProfiler: listed twice"):
        VRAMProfiler().setup(lightning, module, "fit")
    profiler.on_exception(lightning, module, OSError())
    profiler.on_exception(lightning, module, OSError())
    profiler.teardown(lightning, module, "fit")
    assert not module.phases.listeners
    with pytest.raises(ConfigError, match="VRAMProfiler: listed twice"):
        fit(tmp_path, module, 1, callbacks=[VRAMProfiler(), VRAMProfiler()])


def test_a_trial_run_prints_its_table_and_leaves_no_file(
    tiny_model: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, grpo(tiny_model("llama")), 1, callbacks=[VRAMProfiler()], fast_dev_run=True)
    assert "| update | 1 |" in capsys.readouterr().out
    assert not list(tmp_path.glob("memory*"))
