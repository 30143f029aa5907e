"""The command line of ``grpo reproduce``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_lightning.cli.command_parser import CommandParser
from grpo_lightning.cli.launch import is_first_process
from grpo_lightning.errors import ConfigError, RunError
from grpo_lightning.output import counted
from grpo_lightning.stored import read_record, read_rollouts, refuse_folder_of_runs

HELP = """\
usage: grpo reproduce RUN_DIR [--check] [--KEY VALUE ...]

Run a config.yaml of a run once more, in RUN_DIR/reproduced/<time>-<id>, and compare the rollouts with the stored ones.
First print what differs from the run: versions, commits, uncommitted changes. The exit status is 1 if rollouts differ.
Use it in the folder where the run began: relative paths of its config are resolved there.

  --check          only print what differs; the exit status is 1 if something does
  --KEY VALUE      change a key, such as --trainer.max_steps 10 to compare the first steps alone
"""
ORDINARY = ("versions", "commits", "platform")
"""What can be compared before the run; the others are known when it has started."""

PLACES = ("--run_dir", "--trainer.default_root_dir")
"""Keys that say where the copy goes."""


def main(args: Sequence[str]) -> None:
    """Train by the config of a run, and compare.

    Raises:
        ConfigError: the directory holds no run.
        RunError: something differs, with ``--check``; or the rollouts do.
    """
    parser = CommandParser("reproduce")
    parser.add_argument("run_dir", nargs="?", type=Path)
    parser.add_argument("--check", action="store_true")
    given, options = parser.parse_beside_keys(args)
    if {"-h", "--help"} & set(args):
        print(HELP)
        return
    if given.run_dir is None:
        raise ConfigError("RUN_DIR: give the directory of a run, such as grpo reproduce runs/quickstart/RUN")
    refuse_folder_of_runs(given.run_dir, "RUN_DIR")
    config, record = given.run_dir / "config.yaml", given.run_dir / "environment.json"
    if not config.is_file() or not record.is_file():
        raise ConfigError(f"RUN_DIR: {given.run_dir} is not a run, which has config.yaml and environment.json")
    then = read_record(record)
    began = then.get("folder")
    if began is not None and Path(began).is_dir() and Path(began).resolve() != Path.cwd().resolve():
        raise ConfigError(
            f"RUN_DIR: the run began in {began}, where paths in its config are resolved: use grpo reproduce "
            f"{given.run_dir.resolve()} in that folder"
        )
    if given.run_dir.joinpath("config-2.yaml").is_file():
        _say("the run was resumed: its first config is repeated, without an interruption")
    # Imported here: help and mistakes need no torch.
    from grpo_lightning.cli.environment import software

    found = [*differences({name: then.get(name) for name in ORDINARY}, software())]
    _say("\n".join(found) if found else "same commit, versions and platform as the run")
    if given.check:
        if found:
            raise RunError(f"{len(found)} of the things that {given.run_dir} was made with differ")
        return
    from grpo_lightning.cli.grpo_cli import run
    from grpo_lightning.cli.run_dirs import REPRODUCED, new_path

    # Inside the run: beside it, the copy would be the newest run of the config, which --ckpt_path last takes.
    is_placed = any(option.partition("=")[0] in PLACES for option in options)
    place = [] if is_placed else ["--run_dir", str(new_path(given.run_dir, REPRODUCED))]
    cli = run(["fit", "--config", str(config), *place, *options])
    assert cli.run_dir is not None
    new = cli.run_dir.path
    now = read_record(new / "environment.json")
    others = ("device", "world_size", "threads")
    for line in differences({name: then.get(name) for name in others}, {name: now[name] for name in others}):
        _say(line)
    _say(compared(given.run_dir, new))


def _say(text: str) -> None:
    """Print once for all processes of a launch."""
    if is_first_process():
        print(text)


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line per difference between two records; nested records are compared by their parts."""
    for name, value in then.items():
        current = now.get(name)
        if isinstance(value, Mapping) and isinstance(current, Mapping):
            yield from differences(_flat(name, value), _flat(name, current))
        elif value is None and isinstance(current, Mapping):
            yield f"{name}: the run did not record them"
        elif value != current:
            yield f"{name}: {_shown(value)} then, {_shown(current)} now"
        elif " with changes " in str(value):
            yield f"{name}: the run had uncommitted changes, as there are now; new files are not compared"


def _flat(name: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}: {part}": value for part, value in parts.items()}


def _shown(value: Any) -> str:
    return "unknown" if value is None else str(value)


def compared(old: Path, new: Path) -> str:
    """Whether two runs made the same rollouts in the steps that both made.

    Raises:
        RunError: they did not; it names the first that differs.
        ConfigError: one of them has stored no rollouts.
    """
    theirs = {record["id"]: _told(record) for record in read_rollouts(new)}
    steps, count, different = set(), 0, None
    for record in read_rollouts(old):
        if record["id"] not in theirs:
            continue
        count += 1
        steps.add(record["step"])
        if _told(record) != theirs[record["id"]] and (different is None or record["step"] < different[0]):
            different = record["step"], record["id"]
    if not count:
        raise RunError(f"{old} and {new} have no rollouts of the same steps")
    if different is not None:
        raise RunError(
            f"not reproduced: the rollouts of {old} and {new} differ from step {different[0]} on, first "
            f"{different[1]}: grpo samples shows both"
        )
    rollouts, of_steps = counted(count, "rollout"), counted(len(steps), "step")
    return f"reproduced: {rollouts} of {of_steps} {'is' if count == 1 else 'are'} the same, text and reward"


def _told(record: Mapping[str, Any]) -> tuple[str, float | None]:
    return record["completion"], record["reward"]
