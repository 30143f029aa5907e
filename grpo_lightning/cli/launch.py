"""Which process of a launch this is, and what its processes agree on before Lightning connects them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

from grpo_lightning.errors import ConfigError

RUN_DIR_VARIABLE = "GRPO_RUN_DIR"
"""How the processes that Lightning starts learn of the first one's run directory."""

_RENDEZVOUS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun and other launchers of torch's ``env://`` tell every process."""

_store: Any = None  # kept open: torch's own process group joins it later
_rounds = itertools.count()


def is_first_process() -> bool:
    """Whether this is the first process of its launch, or the only one."""
    variables = os.environ
    if "RANK" in variables:
        return int(variables["RANK"]) == 0
    if _by_slurm():
        return int(variables["SLURM_PROCID"]) == 0
    return int(variables.get("LOCAL_RANK", 0)) == int(variables.get("NODE_RANK", 0)) == 0


def check_processes(devices: int) -> None:
    """Check that torchrun or srun have started one process per device: each would train the whole run otherwise.

    Args:
        devices: the number of the Trainer's devices on all nodes.

    Raises:
        ConfigError: they have started another number of processes.
    """
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if not by_torchrun and not _by_slurm():
        return
    launcher, variable = ("torchrun", "WORLD_SIZE") if by_torchrun else ("srun", "SLURM_NTASKS")
    started = int(os.environ[variable])
    if started != devices:
        raise ConfigError(
            f"trainer.devices: {launcher} started {started} processes for trainer.devices * trainer.num_nodes = "
            f"{devices} devices: set trainer.devices to the processes per node, trainer.num_nodes to the nodes, and "
            "trainer.strategy to ddp"
        )


def is_launched() -> bool:
    """Whether a launcher has started this process, and perhaps others, before Lightning could."""
    return "RANK" in os.environ or _by_slurm()


def agreed(choose: Callable[[str | None], str]) -> str:
    """One text for all processes of a launch; each must call this as often as the others.

    Args:
        choose: makes the text, given a name that all processes know already, or ``None`` where there is none. Called
            in every process where there is one, else in the first alone.

    Raises:
        ConfigError: the processes were started independently of each other.
    """
    this_round = next(_rounds)
    if all(name in os.environ for name in _RENDEZVOUS):
        return _over_the_store(f"grpo/{this_round}", choose)
    if _by_slurm():
        return choose(_slurm_name() + (f"-{this_round + 1}" if this_round else ""))
    if not is_first_process() and RUN_DIR_VARIABLE in os.environ:
        return os.environ[RUN_DIR_VARIABLE]
    if "WORLD_SIZE" in os.environ or not is_first_process():
        raise ConfigError(
            f"run_dir: this process is one of several and does not have all of {', '.join(_RENDEZVOUS)}, so they "
            "cannot agree on a run directory: start them with torchrun or srun, or give --run_dir"
        )
    text = os.environ[RUN_DIR_VARIABLE] = choose(None)
    return text


def _over_the_store(key: str, choose: Callable[[str | None], str]) -> str:
    from torch.distributed.rendezvous import rendezvous

    global _store
    if _store is None:
        _store, _, _ = next(iter(rendezvous("env://")))
    if is_first_process():
        _store.set(key, choose(None))
    return str(_store.get(key).decode())


def _by_slurm() -> bool:
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1


def earlier_starts() -> list[str]:
    """Names of the directories of this job's starts before this one, the newest first, where SLURM starts it again."""
    if not _by_slurm():
        return []
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    earlier = ["", *(str(restart) for restart in range(1, restarts))][:restarts]
    return [_slurm_name(restart) for restart in reversed(earlier)]


def _slurm_name(restart: str | None = None) -> str:
    """A job may have several steps, and may be started again."""
    job, step = (os.environ.get(f"SLURM_{name}") for name in ("JOB_ID", "STEP_ID"))
    restart = os.environ.get("SLURM_RESTART_COUNT") if restart is None else restart
    return "-".join(["slurm", *(part for part in (job, step, restart) if part)])
