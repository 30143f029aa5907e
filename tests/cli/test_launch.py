"""Several processes: on which run directory they agree, and real launches of two."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
import zipfile
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import grpo_lightning.__main__ as command
from grpo_lightning.__main__ import main
from grpo_lightning.cli import launch
from grpo_lightning.cli.checkpoints import requeued_checkpoint
from grpo_lightning.cli.run_dirs import new_path
from grpo_lightning.cli.warm_start import warm_policy
from grpo_lightning.errors import ConfigError
from tests.cli.test_cli import ROOT, few, only_run, short_warm_start
from tests.cli.test_user_errors import error_of
from tests.processes import TIMEOUT_S, forked

VARIABLES = (
    "RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GRPO_RUN_DIR", "SLURM_PROCID",
    "SLURM_NTASKS", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID",
)  # fmt: skip


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No launcher."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_lone_process_makes_a_new_directory_each_time(alone: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert launch.is_first_process()
    assert new_path(tmp_path, "x") != new_path(tmp_path, "x")


def test_processes_that_lightning_starts_have_the_first_ones_directory(
    alone: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = new_path(tmp_path, "x")
    alone.setenv("LOCAL_RANK", "1")
    alone.setenv("WORLD_SIZE", "2")
    assert not launch.is_first_process()
    assert new_path(tmp_path, "x") == first
    alone.delenv("GRPO_RUN_DIR")
    with pytest.raises(ConfigError, match=r"run_dir: .* start them with torchrun or srun, or give --run_dir"):
        new_path(tmp_path, "x")


@pytest.mark.parametrize("variables", [{"WORLD_SIZE": "2"}, {"NODE_RANK": "1"}])
def test_processes_that_know_nothing_of_each_other_need_a_run_dir(
    alone: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        alone.setenv(name, value)
    with pytest.raises(ConfigError, match="or give --run_dir"):
        new_path(tmp_path, "x")


def test_the_tasks_of_a_slurm_job_have_one_directory(alone: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0"}
    paths = []
    for changes in ({"SLURM_PROCID": "0"}, {"SLURM_PROCID": "3"}, {"SLURM_STEP_ID": "1"}, {"SLURM_RESTART_COUNT": "1"}):
        for name, value in ({"SLURM_PROCID": "0"} | job | changes).items():
            alone.setenv(name, value)
        alone.setattr(launch, "_rounds", iter(range(9)))
        paths.append(new_path(tmp_path, "x").name)
    assert paths == ["slurm-77-0", "slurm-77-0", "slurm-77-1", "slurm-77-0-1"]
    alone.setenv("SLURM_PROCID", "3")
    assert not launch.is_first_process()
    alone.setenv("SLURM_NTASKS", "1")
    assert launch.is_first_process(), "a single task of a job is a lone process"


def test_a_job_that_slurm_starts_again_continues_its_newest_checkpoint(
    alone: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = {"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0"}
    for name, value in job.items():
        alone.setenv(name, value)
    found = []
    for count, start in (("0", "slurm-77-0"), ("1", "slurm-77-0-1"), ("2", "slurm-77-01"), ("3", "")):
        alone.setenv("SLURM_RESTART_COUNT", count)
        last = requeued_checkpoint(tmp_path, "x")
        found.append(last and Path(last).parents[1].name)
        if start:
            (tmp_path / "x" / start / "checkpoints").mkdir(parents=True)
            with zipfile.ZipFile(tmp_path / "x" / start / "checkpoints/last.ckpt", "w") as whole:
                whole.writestr("last/data.pkl", "skipped_steps")
    assert found == [None, "slurm-77-0", "slurm-77-0-1", "slurm-77-0-1"]


@pytest.mark.parametrize(
    "started",
    [
        {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "2"},
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0"},
    ],
)
def test_a_launcher_that_started_other_processes_than_there_are_devices_is_refused(
    alone: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], started: dict[str, str]
) -> None:
    alone.chdir(ROOT)
    for name, value in (started | {"LOCAL_RANK": "0", "SLURM_LOCALID": "0"}).items():
        alone.setenv(name, value)
    for devices in (1, 3):
        options = {"run_dir": tmp_path / "run", "warm_start": "null", "trainer.devices": devices}
        error = error_of(capsys, "--config", "configs/quickstart.yaml", *few(tmp_path / "runs", **options))
        assert re.match(r"trainer.devices: (torchrun|srun) started 2 processes for .* = \d devices: set ", error)
    assert not (tmp_path / "run").exists()
    launch.check_processes(2)


def _print_agreed(rank: int, port: int, both: Barrier) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    print([launch.agreed(lambda known: f"{rank}: {os.getpid()}") for _ in range(2)])
    both.wait(120)  # the first process serves the texts


def test_processes_with_a_rendezvous_agree_on_the_first_ones_text() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = get_context("fork").Barrier(2)
    said = forked(_print_agreed, [(rank, port, both) for rank in (0, 1)])
    assert said[0] == said[1]
    assert re.fullmatch(r"\['0: (\d+)', '0: \1'\]\n", said[0])


@pytest.mark.parametrize(("launcher_is_gone", "lines"), [(False, 1), (True, 0)])
def test_a_mistake_is_not_repeated_by_every_process(
    alone: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], launcher_is_gone: bool, lines: int
) -> None:
    alone.setattr(command, "PATIENCE_S", 0.0)
    parents = iter([7, 1 if launcher_is_gone else 7])
    alone.setattr(os, "getppid", lambda: next(parents))
    alone.setenv("RANK", "1")
    with pytest.raises(SystemExit, match="2"):
        main(["fit"])
    assert capsys.readouterr().err.count("grpo: error: ") == lines
    alone.setenv("RANK", "0")
    with pytest.raises(SystemExit, match="2"):
        main(["fit"])
    assert capsys.readouterr().err.count("grpo: error: ") == 1


# -- real launches ----------------------------------------------------------------------------------------------------

SHIPPED = [
    {"class_path": "ReferenceSync", "init_args": {"every_n_steps": 1}},
    {"class_path": "AdaptiveKL"},
    {"class_path": "Cost", "init_args": {"price_per_hour": 2.0}},
    {"class_path": "VRAMProfiler"},
    {"class_path": "StopWhen", "init_args": {"max_kl": 100.0}},
    {"class_path": "TokenBudget", "init_args": {"tokens": 100_000}},
]


def arguments_of(root: Path) -> list[str]:
    """The arguments with which two processes train the quickstart, with its warm start and every shipped callback."""
    options: dict[str, Any] = {
        "warm_start": short_warm_start(root), "trainer.devices": 2, "trainer.strategy": "ddp", "model.beta": 0.1,
        "trainer.callbacks": json.dumps(SHIPPED), "export.best": "true", "rollouts.every_n_steps": 1,
        "tensorboard.every_n_steps": 1, "data.prompts_per_step": 3,
    }  # fmt: skip
    return ["fit", "--config", "configs/quickstart.yaml", *few(root / "runs", **options)]


def launched(root: Path, launcher: list[str]) -> tuple[Path, str]:
    """The run that a launcher makes, and what it prints.

    Args:
        root: where.
        launcher: the arguments of Python before the module.
    """
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, *launcher, "-m", "grpo_lightning", *arguments_of(root)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return only_run(root / "runs", "quickstart"), done.stdout


def _task(variables: dict[str, str], arguments: list[str]) -> None:
    """One task of srun."""
    for name in [name for name in os.environ if name in VARIABLES or name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        del os.environ[name]
    os.environ |= variables
    launch._rounds, launch._store = itertools.count(), None  # as in a new process
    os.chdir(ROOT)
    sys.stderr = sys.stdout
    main(arguments)


def _refused(variables: dict[str, str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        _task(variables, arguments)


def test_a_warm_start_that_fails_in_the_first_process_ends_the_others(
    alone: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alone.setattr(command, "PATIENCE_S", 0.0)
    config = short_warm_start(tmp_path)
    config.write_text(config.read_text().replace("prompts_per_step: ", "prompts_per_step: -"))
    arguments = ["fit", "--config", "configs/quickstart.yaml", *few(tmp_path / "runs", warm_start=config)]
    said = forked(_refused, [(task, [*arguments, "--trainer.devices", "2"]) for task in srun_tasks()])
    assert "warm_start: in " in said[0]
    assert "data.prompts_per_step: must be at least 1" in said[0]
    assert "warm_start: it failed in the first process, which says why" in said[1]


@pytest.mark.parametrize("variables", [{"LOCAL_RANK": "1"}, {"NODE_RANK": "1"}])
def test_processes_that_cannot_agree_wait_for_the_first_ones_warm_start(
    alone: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        alone.setenv(name, value)
    policy = tmp_path / "warm_start/policy"
    alone.setattr(time, "sleep", lambda _: policy.mkdir(parents=True))
    nothing: Any = None  # it trains nothing
    assert warm_policy(nothing, tmp_path, tmp_path, nothing) == policy
    assert not list(tmp_path.glob("warm_start_failed*"))
    # One that is there needs no agreement.
    alone.setenv("RANK", "1")
    alone.setenv("WORLD_SIZE", "2")
    assert warm_policy(nothing, tmp_path, tmp_path, nothing) == policy


def srun_tasks() -> list[dict[str, str]]:
    """The variables of two tasks on one node."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {
        "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "grpo",
        "SLURM_STEP_ID": "0", "SLURM_NODELIST": "127.0.0.1", "SLURM_NODEID": "0", "MASTER_PORT": port,
    }  # fmt: skip
    return [job | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} for task in (0, 1)]


@pytest.fixture(scope="module")
def by_torchrun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    return launched(tmp_path_factory.mktemp("torchrun"), launcher)


@pytest.mark.slow
def test_torchrun_needs_no_run_dir(by_torchrun: tuple[Path, str]) -> None:
    run, output = by_torchrun
    assert output.count("All distributed processes registered. Starting with 2 processes") == 1
    assert (run / "warm_start/policy/config.json").is_file()
    assert (run / "policy/config.json").is_file()
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["model"]["init_args"]["policy"]["path"] == str(run / "warm_start/policy")
    assert not (run / "config-2.yaml").exists()
    assert json.loads((run / "environment.json").read_text())["world_size"] == 2
    assert json.loads((run / "warm_start/environment.json").read_text())["world_size"] == 1
    ranks = {file.name.split("-")[0] for file in (run / "rollouts").rglob("*.jsonl")}
    assert ranks == {"rank0", "rank1"}
    rows = [json.loads(line) for file in (run / "rollouts").rglob("*.jsonl") for line in file.read_text().splitlines()]
    assert sorted({(row["step"], row["rank"]) for row in rows}) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(rows) == 2 * 3 * 2, "steps, prompts and completions of each"


@pytest.mark.slow
def test_every_callback_writes_once_under_torchrun(by_torchrun: tuple[Path, str]) -> None:
    run, _ = by_torchrun
    events = EventAccumulator(str(run))
    events.Reload()
    for curve in ("reward/mean", "policy/beta", "reference/moves", "total/rollout_tokens"):
        assert [event.step for event in events.Scalars(curve)] == [0, 1], curve
    assert len(list(run.glob("events.out.tfevents.*"))) == 1


@pytest.mark.slow
def test_lightnings_own_launcher_takes_the_steps_that_torchrun_does(
    by_torchrun: tuple[Path, str], tmp_path: Path
) -> None:
    run, output = launched(tmp_path, [])
    assert output.count("All distributed processes registered. Starting with 2 processes") == 1
    assert_same_weights(run, by_torchrun[0])


@pytest.mark.slow
def test_the_tasks_of_srun_take_the_steps_that_torchrun_does(by_torchrun: tuple[Path, str], tmp_path: Path) -> None:
    """The variables that srun sets, which Lightning's ``SLURMEnvironment`` reads, with two tasks on one node."""
    tasks = srun_tasks()
    forked(_task, [(task, arguments_of(tmp_path)) for task in tasks])
    run = only_run(tmp_path / "runs", "quickstart")
    assert run.name == "slurm-77-0"
    assert json.loads((run / "environment.json").read_text())["world_size"] == 2
    assert {file.name.split("-")[0] for file in (run / "rollouts").rglob("*.jsonl")} == {"rank0", "rank1"}
    assert (run / "warm_start/policy/config.json").is_file()
    assert_same_weights(run, by_torchrun[0])
    # Started again, the job continues its run.
    again = [*arguments_of(tmp_path), "--trainer.max_steps", "3"]
    forked(_task, [(task | {"SLURM_RESTART_COUNT": "1"}, again) for task in tasks])
    assert only_run(tmp_path / "runs", "quickstart") == run
    assert (run / "config-2.yaml").is_file()
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3


def assert_same_weights(run: Path, other_run: Path) -> None:
    checkpoints = [folder / "checkpoints/last.ckpt" for folder in (run, other_run)]
    one, other = (torch.load(file, weights_only=True)["state_dict"] for file in checkpoints)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
