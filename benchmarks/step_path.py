"""The project's own functions that one training step enters, and the CPU time of a step.

    python benchmarks/step_path.py
    python benchmarks/step_path.py --tree --without all

Counts the functions and files of this project between the ends of two GRPO steps of ``configs/quickstart.yaml``, with
all of a run's callbacks. The policy is untrained, so another verifier gives it rewards that differ. Comprehensions and
lambdas count to the function that they are written in. The time is CPU seconds of the process per step, over
``--steps`` steps before the counted one. ``--tree`` prints who calls whom, each call once.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning.pytorch as pl
from lightning.pytorch.cli import LightningCLI

import grpo_lightning
import grpo_lightning.callbacks
from grpo_lightning.__main__ import main as grpo
from grpo_lightning.speed.registry import NAMES

ROOTS = [Path(str(package.__file__)).parent for package in (grpo_lightning, grpo_lightning.callbacks)]
CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
WARM_UP = 3
"""Steps before the timed ones."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--prompts", type=int, default=32, help="data.prompts_per_step")
    parser.add_argument("--without", choices=["none", "all", "both"], default="both", help="shortcuts switched off")
    parser.add_argument("--tree", action="store_true", help="print the tree of calls")
    return parser.parse_args()


class Calls:
    """Records which functions of the project call which, while it is set as the profile function."""

    def __init__(self) -> None:
        self.callees: dict[str, dict[str, None]] = {}
        self.functions: set[str] = set()
        self._names: dict[CodeType, str | None] = {}

    @property
    def files(self) -> set[str]:
        return {name.split(":")[0] for name in self.functions}

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and (name := self._name(frame.f_code)) is not None:
            caller = frame.f_back
            while caller is not None and self._name(caller.f_code) is None:
                caller = caller.f_back
            parent = "" if caller is None else self._name(caller.f_code) or ""
            self.callees.setdefault(parent, {})[name] = None
            self.functions.add(name)

    def tree(self) -> list[str]:
        """A line per call, indented below its caller; what a function calls is listed below its first call only."""
        lines, listed = [], set()

        def add(name: str, depth: int) -> None:
            lines.append("  " * depth + name)
            if name not in listed:
                listed.add(name)
                for callee in self.callees.get(name, {}):
                    add(callee, depth + 1)

        for root in self.callees:
            if root not in self.functions:
                add(root, 0)
        return lines

    def _name(self, code: CodeType) -> str | None:
        """``file:function`` of a function of the project, else ``None``."""
        if code not in self._names:
            path, name = Path(code.co_filename), code.co_qualname.replace("<locals>.", "")
            root = next((root for root in ROOTS if path.is_relative_to(root)), None)
            written = root is not None and not name.endswith(">")  # <lambda>, <genexpr>, <module>, ...
            self._names[code] = f"{path.relative_to(root.parent)}:{name}" if root and written else None
        return self._names[code]


class Counter(pl.Callback):
    """Times the steps after the first few, then records the calls of one more."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.calls = Calls()
        self.started = self.ms_per_step = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        sys.setprofile(None)
        if batch_idx + 1 == WARM_UP:
            self.started = time.process_time()
        elif batch_idx + 1 == WARM_UP + self.steps:
            self.ms_per_step = (time.process_time() - self.started) / self.steps * 1e3
            sys.setprofile(self.calls)


def count(arguments: argparse.Namespace, without: tuple[str, ...]) -> Counter:
    """Train with some shortcuts switched off."""
    counter, made = Counter(arguments.steps), LightningCLI.instantiate_trainer

    def with_counter(cli: LightningCLI, **kwargs: Any) -> pl.Trainer:
        trainer = made(cli, **kwargs)
        trainer.callbacks.append(counter)  # type: ignore[attr-defined]
        return trainer

    LightningCLI.instantiate_trainer = with_counter  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            grpo([
                "fit", "--config", str(CONFIG), "--warm_start", "null", "--run_dir", folder,
                "--model.policy.path", str(CONFIG.parent / "tiny_decoder"), "--model.policy.init", "random",
                "--model.verifiers", "shapes.TokenVerifier",
                "--model.policy.without", str(list(without)),
                "--data.prompts_per_step", str(arguments.prompts), "--trainer.limit_val_batches", "0",
                "--trainer.max_steps", str(WARM_UP + arguments.steps + 1),
            ])  # fmt: skip
    finally:
        LightningCLI.instantiate_trainer = made  # type: ignore[method-assign]
    return counter


def main() -> None:
    arguments = parse_arguments()
    variants = {"with the shortcuts": (), "without": NAMES}
    if arguments.without != "both":
        variants = {arguments.without: NAMES if arguments.without == "all" else ()}
    lines = []
    for title, names in variants.items():
        counter = count(arguments, names)
        calls = counter.calls
        if arguments.tree:
            lines += calls.tree()
        lines.append(
            f"{title}: {len(calls.functions)} functions in {len(calls.files)} files, "
            f"{counter.ms_per_step:.0f} CPU ms per step"
        )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
