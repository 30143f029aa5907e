"""Runs that are killed at random moments and resumed: the same weights, and every step once in all that they write."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pyarrow.parquet
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from grpo_lightning.algorithms import PPOModule
from grpo_lightning.callbacks import PolicyExport, RolloutLogger, RunCheckpoint, RunSummary
from grpo_lightning.commands.compare.runs import read_curves
from grpo_lightning.models import PolicyConfig
from grpo_lightning.rollout import RefinementConfig, SamplingParams
from grpo_lightning.stored import read_rollouts
from tests.toy import LetterVerifier, adam, grpo, rollouts, trainer

STEPS = 10
TIMED = ("time/", "throughput/", "memory/", "total/")
"""Curves of time and memory differ from run to run."""

PARTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "grpo": lambda path: {"module": grpo(path, beta=0.05), "data": rollouts(), "format": "jsonl"},
    "ppo": lambda path: {
        "module": PPOModule(policy=PolicyConfig(path=path), verifiers=[LetterVerifier()], optimizer=adam),
        "data": rollouts(), "format": "parquet",
    },
    "refinement": lambda path: {
        "module": grpo(path), "format": "jsonl",
        "data": rollouts(
            refinement=RefinementConfig(mode="in_context", budget=4), sampling=SamplingParams(max_new_tokens=24)
        ),
    },
}  # fmt: skip


def _train(kind: str, path: str, folder: Path, kill_after_s: float | None) -> None:
    """Train, from the last checkpoint if there is one; the kernel ends the process after so much of its CPU time."""
    parts, last = PARTS[kind](path), folder / "checkpoints/last.ckpt"
    pl.seed_everything(0, verbose=False)
    if kill_after_s is not None:
        # Without a handler SIGPROF ends a process as SIGKILL does, and comes by CPU time, however busy the machine is.
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, kill_after_s)
    started = time.process_time()
    trainer(
        folder, STEPS, enable_checkpointing=True, limit_val_batches=1, val_check_interval=3, log_every_n_steps=1,
        logger=[TensorBoardLogger(str(folder), name="", version=""), CSVLogger(str(folder), name="csv", version="")],
        callbacks=[
            RunSummary(), RolloutLogger(format=parts["format"]), PolicyExport(), RunCheckpoint(every_n_train_steps=2),
        ],
    ).fit(parts["module"], datamodule=parts["data"], ckpt_path=last if last.exists() else None)  # fmt: skip
    (folder / "seconds").write_text(str(time.process_time() - started))


def _run(*arguments: Any) -> int:
    """The exit code of :func:`_train` in a fork of this process."""
    process = get_context("fork").Process(target=_quietly, args=arguments)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _quietly(*arguments: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    _train(*arguments)


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars of the event files, as TensorBoard shows them."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def _cells(folder: Path) -> list[tuple[str, str, str]]:
    """Step, column and value of all CSV files."""
    cells = []
    for file in (folder / "csv").glob("*.csv"):
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                cells += [(row["step"], name, value) for name, value in row.items() if value and name != "epoch"]
    return sorted(cells)


def _rollouts(folder: Path) -> list[Any]:
    """All records of the rollout files, whatever folder they are in."""
    records = []
    for file in (folder / "rollouts").rglob("*"):
        if file.suffix == ".jsonl":
            records += [json.loads(line) for line in file.read_text().splitlines()]
        elif file.suffix == ".parquet":
            records += pyarrow.parquet.read_table(file).to_pylist()
        else:
            assert file.is_dir(), f"{file} is left over"
    return sorted(records, key=lambda record: (record["step"], record["id"]))


def _check_equal(whole: Path, killed: Path) -> None:
    one, other = (torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (whole, killed))
    assert one["global_step"] == other["global_step"] == STEPS
    assert all(torch.equal(tensor, other["state_dict"][name]) for name, tensor in one["state_dict"].items())
    (left,), (right,) = (checkpoint["optimizer_states"] for checkpoint in (one, other))
    for key, state in left["state"].items():
        assert all(torch.equal(value, right["state"][key][name]) for name, value in state.items())
    wanted, found = _curves(whole), _curves(killed)
    assert found.keys() == wanted.keys()
    for name, points in wanted.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points], name
        if not name.startswith(TIMED):
            assert [repr(value) for _, value in found[name]] == [repr(value) for _, value in points], name
    assert [step for step, _ in found["reward/mean"]] == list(range(STEPS))
    assert [step for step, _ in found["val/accuracy"]] == [0, 2, 5, 8, 9]
    assert list(read_curves(killed)["val/accuracy"].steps) == [0, 3, 6, 9, 10]
    timeless = [[cell for cell in _cells(folder) if not cell[1].startswith(TIMED)] for folder in (whole, killed)]
    assert timeless[0] == timeless[1]
    assert [cell[:2] for cell in _cells(whole)] == [cell[:2] for cell in _cells(killed)]
    stored = _rollouts(killed)
    assert len({(record["step"], record["id"]) for record in stored}) == len(stored)
    assert stored == _rollouts(whole)
    assert len(list(read_rollouts(killed))) == len(stored)


def _soak(kind: str, path: str, root: Path, kills: int, seed: int) -> None:
    """Kill runs and resume them until they end, until this many kills have been made, each in another part of a run."""
    whole, draw = root / "whole", random.Random(seed)
    assert _run(kind, path, whole, None) == 0
    seconds = float((whole / "seconds").read_text())
    parts = draw.sample(range(kills), kills)
    moments: list[float] = []
    while len(moments) < kills:
        killed = root / "killed"
        while True:
            if not (killed / "checkpoints/last.ckpt").exists():
                shutil.rmtree(killed, ignore_errors=True)  # as a start without a checkpoint is a new run
            part = parts[len(moments)] if len(moments) < kills else None
            moment = None if part is None else (part + draw.random()) / kills * seconds
            ended = _run(kind, path, killed, moment)
            if ended == 0:
                break
            assert ended == -signal.SIGPROF, f"seed {seed}, after {moments}"
            moments.append(round(moment or 0.0, 2))
        _check_equal(whole, killed)
        shutil.rmtree(killed)
    print(f"{kind}, seed {seed}: killed after {moments} of {seconds:.2f} s of CPU time")


@pytest.mark.slow
@pytest.mark.parametrize("kind", PARTS)
def test_a_run_killed_at_any_moment_holds_every_step_once(
    tiny_model: Callable[[str], str], tmp_path: Path, kind: str
) -> None:
    _soak(kind, tiny_model("llama"), tmp_path, kills=4, seed=2)
