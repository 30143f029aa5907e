"""Two network namespaces as two nodes: processes that share a file system and a network, and nothing else."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from grpo_lightning.cli.grpo_cli import run
from tests.cli.test_cli import only_run
from tests.cli.test_launch import VARIABLES
from tests.toy import same

pytestmark = pytest.mark.slow

STEPS, KILLED_IN = 6, 3
CLONE_NEWNET = 0x40000000  # from sched.h


class KillNode(pl.Callback):
    """Kills the second node in a step, where the environment says so."""

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == KILLED_IN and trainer.global_rank == 1 and "KILL_NODE" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[str]]:
    """Names of two network namespaces that a pair of virtual interfaces connects; theirs are called as they are."""
    if shutil.which("ip") is None:
        pytest.skip("two nodes need iproute2, for its command ip")
    names = [f"grpo{os.getpid() % 10**6}{letter}" for letter in "ab"]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", name)
            for device in ("lo", name):
                ip("-n", name, "link", "set", device, "up")
        yield names
    except subprocess.CalledProcessError as error:
        pytest.skip(f"two nodes need the privilege to make network namespaces: {error.stderr.strip()}")
    finally:
        for name in names:
            with suppress(subprocess.CalledProcessError):
                ip("netns", "delete", name)


def _on_node(name: str | None, rank: int, arguments: list[str], weights: Path, environment: dict[str, str]) -> None:
    """What a node does: the first tells the others, whose master it is, where the run directory is."""
    for variable in VARIABLES:
        os.environ.pop(variable, None)
    os.environ |= environment
    if name is not None:
        with open(f"/var/run/netns/{name}") as namespace:
            assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) == 0
        os.environ |= {
            "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "NODE_RANK": str(rank),
            "GROUP_RANK": str(rank), "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29511", "GLOO_SOCKET_IFNAME": name,
            "TORCHELASTIC_RUN_ID": "none",
        }  # fmt: skip
    log = os.open(weights.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    module = run(["fit", *arguments]).model
    torch.save({name: tensor for name, tensor in module.named_parameters() if tensor.requires_grad}, weights)


def _train(names: list[Any], arguments: list[str], folder: Path, **environment: str) -> list[int | None]:
    """Exit codes of a run with one process per node."""
    folder.mkdir(exist_ok=True)
    processes = [
        get_context("fork").Process(target=_on_node, args=(name, rank, arguments, folder / f"{rank}.pt", environment))
        for rank, name in enumerate(names)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        if process.exitcode is None:
            process.kill()
    return [process.exitcode for process in processes]


def _weights(folder: Path, rank: int) -> dict[str, torch.Tensor]:
    return dict(torch.load(folder / f"{rank}.pt", weights_only=True))


@pytest.fixture(scope="module")
def config(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "nodes.yaml"
    # Plain SGD: Adam would make whole steps of what differs by rounding.
    content = {
        "trainer": {
            "accelerator": "cpu", "max_steps": STEPS, "val_check_interval": 4, "limit_val_batches": 1,
            "enable_progress_bar": False, "callbacks": [{"class_path": "tests.cli.test_nodes.KillNode"}],
        },
        "model": {
            "class_path": "GRPOModule",
            "init_args": {
                "policy": {"path": tiny_model("llama")}, "verifiers": [{"class_path": "tests.toy.LetterVerifier"}],
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
            },
        },
        "data": {
            "task": {"class_path": "tests.toy.ToyTask"}, "prompts_per_step": 3, "group_size": 4,
            "sampling": {"max_new_tokens": 16},
        },
        "checkpoint": {"every_n_train_steps": 2},
    }  # fmt: skip
    file.write_text(yaml.safe_dump(content))
    return file


TWO = ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.strategy", "ddp"]


def test_two_nodes_take_the_steps_of_one_process_and_continue_when_one_was_killed(
    nodes: list[str], config: Path, tmp_path: Path
) -> None:
    def arguments(root: str) -> list[str]:
        return ["--config", str(config), "--trainer.default_root_dir", str(tmp_path / root)]

    assert _train([None], arguments("one"), tmp_path / "weights-one") == [0]
    assert _train(nodes, [*arguments("two"), *TWO], tmp_path / "weights-two") == [0, 0]
    one = _weights(tmp_path / "weights-one", 0)
    two = [_weights(tmp_path / "weights-two", rank) for rank in (0, 1)]
    assert same(*two), "both nodes hold the same weights, bit for bit"
    assert not same(one, _start(config)), "something was learned"
    for name, tensor in one.items():
        torch.testing.assert_close(two[0][name], tensor, atol=1e-5, rtol=1e-4)
    ranks = {file.name.split("-")[0] for file in (only_run(tmp_path / "two", "nodes") / "rollouts").rglob("*.jsonl")}
    assert ranks == {"rank0", "rank1"}, "of one run directory"

    killed = _train(nodes, [*arguments("killed"), *TWO], tmp_path / "weights-killed", KILL_NODE="1")
    assert killed[1] == -signal.SIGKILL
    assert killed[0] not in (0, None), "the other node ends, too, with an error"
    again = [*arguments("killed"), *TWO, "--ckpt_path", "last"]
    assert _train(nodes, again, tmp_path / "weights-again") == [0, 0]
    resumed = [_weights(tmp_path / "weights-again", rank) for rank in (0, 1)]
    assert same(*resumed)
    assert same(resumed[0], two[0])
    assert (only_run(tmp_path / "killed", "nodes") / "config-2.yaml").is_file(), "the same run directory"


def _start(config: Path) -> dict[str, torch.Tensor]:
    path = yaml.safe_load(config.read_text())["model"]["init_args"]["policy"]["path"]
    model = AutoModelForCausalLM.from_pretrained(path)
    return {f"policy.model.{name}": tensor for name, tensor in model.named_parameters()}
