"""``grpo plan``: the memory of each phase of a config, whether it fits, and the largest settings that do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from grpo_lightning.cli.command_parser import CommandParser
from grpo_lightning.cli.importing import importing
from grpo_lightning.errors import ConfigError

if TYPE_CHECKING:
    from grpo_lightning.commands.plan.peaks import PhaseMemory
    from grpo_lightning.commands.plan.plan import Planner, Settings

HELP = """\
usage: grpo plan --config FILE [--KEY VALUE ...] [--memory SIZE] [--prompt_tokens N] [--fast]

What memory the process (or the GPU) takes in each phase of a training step, whether it fits, and the largest settings
that do. One iteration runs on tensors without memory. Only the model's config.json is read; neither weights nor data
are downloaded.

  --config FILE       a config as for grpo fit; keys of it may follow, such as --model.max_tokens_per_microbatch 4096
  --memory SIZE       memory of the device to plan for, such as 8GiB or 24GB; default: of this machine's;
                      a GPU's, unless trainer.accelerator is cpu
  --prompt_tokens N   tokens of the longest prompt; default: data.max_prompt_tokens, or 512; at most
                      what the model has positions for
  --fast              the table and the verdict alone, without the search for the largest settings

Exit status: 0 if the config fits, 1 if it does not.
"""

GIB = 2**30
MIB = 2**20
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "G": 2**30, "M": 2**20}
"""Bytes per unit. A number without one is refused: 8 might be bytes or GiB."""


@dataclass(frozen=True)
class Overhead:
    """What a run holds beside its live tensors.

    Args:
        fixed: what it holds before the first tensor, by a name, in bytes.
        share: what the allocator holds and cannot use, by a name, as a fraction of the live tensors.
    """

    fixed: tuple[str, int]
    share: tuple[str, float]

    def added_to(self, phase: PhaseMemory) -> PhaseMemory:
        """The phase as the operating system, or the GPU's driver, sees it."""
        (fixed, size), (kept, share) = self.fixed, self.share
        return replace(phase, parts=phase.parts | {kept: int(share * phase.total), fixed: size})

    def leaves(self, memory: int) -> int:
        """The bytes of live tensors that fit into a device's memory."""
        return max(0, int((memory - self.fixed[1]) / (1 + self.share[1])))


PROCESS = Overhead(("python", 520 * MIB), ("allocator", 0.05))
"""Of a CPU run: Python, the libraries, tokenizer and data; what glibc keeps. ``benchmarks/resident.py`` prints both as
``outside`` and ``kept``; docs/plan.md says how they were chosen."""
CUDA = Overhead(("context", GIB // 2), ("fragmentation", 0.05))
"""Of a GPU: the driver and its libraries; what torch's allocator reserves and cannot use. Both are guesses."""


def main(args: list[str]) -> None:
    """Print the plan of a config.

    Raises:
        SystemExit: 0 if the config fits its device, 1 if not.
        ConfigError: the config or an option is wrong.
    """
    parser = CommandParser("plan")
    parser.add_argument("--memory")
    parser.add_argument("--prompt_tokens", type=int)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    given, rest = parser.parse_beside_keys(args)
    if given.help:
        print(HELP)
        raise SystemExit(0)
    if given.prompt_tokens is not None and given.prompt_tokens < 1:
        raise ConfigError(f"--prompt_tokens: must be at least 1, not {given.prompt_tokens}")
    memory = None if given.memory is None else _size(given.memory)
    with importing():  # here: ``grpo plan --help`` needs no torch
        from grpo_lightning.commands.plan.configured import planner_of

    planner, device = planner_of(rest, given.prompt_tokens, memory)
    overhead = CUDA if planner.on_cuda else PROCESS
    phases = [overhead.added_to(phase) for phase in planner.phases(planner.settings)]
    for line in table(phases):
        print(line)
    print()
    print(planner.assumptions())
    for line in planner.shortcuts():
        print(line)
    worst = max(phases, key=lambda phase: phase.total)
    fits = worst.total <= device.memory
    print(
        f"{device.name}: {device.memory / GIB:.2f} GiB. "
        f"The plan {'fits' if fits else 'does not fit'}: {worst.name} takes {worst.total / GIB:.2f} GiB."
    )
    if not given.fast:
        for line in proposal(planner, planner.propose(overhead.leaves(device.memory)), overhead):
            print(line)
    raise SystemExit(0 if fits else 1)


def table(phases: list[PhaseMemory]) -> Iterator[str]:
    """Phases by parts, in GiB."""
    parts = list(dict.fromkeys(part for phase in phases for part in phase.parts))
    shown = [part for part in parts if any(phase.parts.get(part, 0) >= 0.0005 * phase.total for phase in phases)]
    width = max(len(phase.name) for phase in phases)
    yield f"{'GiB':{width}}  " + "  ".join(f"{part:>9}" for part in (*shown, "total"))
    for phase in phases:
        sizes = [phase.parts.get(part, 0) for part in shown]
        cells = [f"{size / GIB:{max(9, len(part))}.3f}" for part, size in zip(shown, sizes, strict=True)]
        yield f"{phase.name:{width}}  " + "  ".join([*cells, f"{phase.total / GIB:9.3f}"])
    host = max(phase.host for phase in phases)
    if host:
        yield f"and {host / GIB:.3f} GiB of host memory: copies of weights to merge into, pages of an optimizer"


def proposal(planner: Planner, proposed: Settings | None, overhead: Overhead) -> Iterator[str]:
    """What to paste into the config, or onto the command line."""
    if proposed is None:
        yield (
            "No setting fits: the smallest update or rollout takes more. Use LoRA, model.policy.dtype bfloat16, a "
            "smaller model, or shorter prompts and completions."
        )
        return
    after = [overhead.added_to(phase) for phase in planner.phases(proposed)]
    worst = max(after, key=lambda phase: phase.total)
    if proposed == planner.settings:
        yield "The settings are the largest that fit already."
        return
    rows = "null" if proposed.rollout_rows_at_once is None else str(proposed.rollout_rows_at_once)
    checkpointing = str(proposed.gradient_checkpointing).lower()
    yield f"The largest settings that fit ({worst.name} takes {worst.total / GIB:.2f} GiB then):"
    yield ""
    yield "model:"
    yield "  init_args:"
    yield f"    policy: {{gradient_checkpointing: {checkpointing}}}"
    yield f"    max_tokens_per_microbatch: {proposed.max_tokens_per_microbatch}"
    yield f"data: {{rollout_rows_at_once: {rows}}}"
    yield ""
    yield (
        f"--model.policy.gradient_checkpointing {checkpointing} "
        f"--model.max_tokens_per_microbatch {proposed.max_tokens_per_microbatch} --data.rollout_rows_at_once {rows}"
    )


def _size(text: str) -> int:
    found = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", text.strip())
    unit = found and UNITS.get(found[2].upper())
    if not found or unit is None or found[1].count(".") > 1 or float(found[1]) <= 0:
        raise ConfigError(f"--memory: give a size such as 8GiB or 24GB, not {text!r}")
    return int(float(found[1]) * unit)
