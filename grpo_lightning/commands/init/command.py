"""``grpo init``: a folder with a config, a verifier and data, which run as they are."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from grpo_lightning.cli.command_parser import CommandParser
from grpo_lightning.commands.init.config import ALGORITHMS, config_text
from grpo_lightning.commands.init.from_trl import translate
from grpo_lightning.commands.init.kinds import KINDS
from grpo_lightning.commands.init.trl_options import inside_project, read_trl
from grpo_lightning.commands.init.verifier import verifier_text
from grpo_lightning.errors import ConfigError

HELP = f"""\
usage: grpo init NAME [--task {"|".join(KINDS)}] [--model HUB_OR_FOLDER] [--algorithm {"|".join(ALGORITHMS)}]
       grpo init NAME --from-trl FILE.yaml [--model HUB_OR_FOLDER] [--data PATH_OR_HUB] [--rewards MODULE.FUNCTION,...]

Write a folder NAME with a commented config, a verifier and a sample of data, which run as they are: replace them
by yours. With --from-trl, write a config that asks for what a config of TRL's GRPO does, and say what it cannot keep.

  --task T        what the data is like; default: math
"""
HELP += "".join(f"                    {name:5} {kind.summary}\n" for name, kind in KINDS.items())
HELP += f"""\
  --model M       a name on the hub, or a folder on disk; default: {KINDS["math"].model}, and with
                  --task tools {KINDS["tools"].model}
  --algorithm A   default: grpo

  --from-trl F    a YAML with the options of GRPOConfig, as trl grpo --config takes it
  --data D        with --from-trl: the data set, if the YAML names none; a file, a folder or a name on the hub
  --rewards R     with --from-trl: the reward functions, if the YAML names none, such as my_module.reward
"""


def main(args: Sequence[str]) -> None:
    """Write the folder.

    Raises:
        ConfigError: an option is wrong, or the folder is already there.
    """
    parser = CommandParser("init")
    parser.add_argument("name", nargs="?")
    parser.add_argument("--task")
    parser.add_argument("--model")
    parser.add_argument("--algorithm")
    parser.add_argument("--from-trl", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--rewards")
    parser.add_argument("-h", "--help", action="store_true")
    given = parser.parse_args(args)
    if given.help:
        print(HELP)
        return
    if given.name is None:
        raise ConfigError("init: give a name for the new folder, such as grpo init my_task")
    folder = Path(given.name)
    if given.from_trl is not None:
        if given.task is not None or given.algorithm is not None:
            raise ConfigError("--task and --algorithm: not with --from-trl, which translates GRPO on the YAML's data")
        _translate(given.from_trl, folder, given.model, given.data, given.rewards)
        return
    if given.data is not None or given.rewards is not None:
        raise ConfigError("--data and --rewards: only with --from-trl; otherwise change them in the config")
    task, algorithm = given.task or "math", given.algorithm or "grpo"
    for option, value, choices in (("task", task, KINDS), ("algorithm", algorithm, ALGORITHMS)):
        if value not in choices:
            raise ConfigError(f"--{option}: must be one of {', '.join(choices)}, not {value}")
    kind = KINDS[task]
    if algorithm == "sft" and not kind.has_solutions:
        raise ConfigError(f"--algorithm: sft needs worked solutions, which the data of --task {task} does not have")
    name = folder.name
    texts = {
        f"{name}.yaml": config_text(name, kind, inside_project(given.model or kind.model), algorithm),
        "verifier.py": verifier_text(kind),
    }
    _write(folder, texts | kind.files())
    file = shlex.quote(f"{name}.yaml")
    print(f"\ncd {shlex.quote(str(folder))}")
    print(f"grpo check {file}    # is the verifier right about gold answers, and about wrong ones?\ngrpo fit {file}")


def _translate(file: Path, folder: Path, model: str | None, data: str | None, rewards: str | None) -> None:
    options = read_trl(file)
    options.set("model_name_or_path", model)
    options.set("dataset_name", data)
    functions = [name.strip() for name in (rewards or "").split(",") if name.strip()]
    options.set("reward_funcs", functions or None)
    _write(folder, translate(options, folder.name))
    if options.notes:
        print("\nnot kept:")
        for option, why in options.notes.items():
            print(f"  {option}: {why}")
    config = shlex.quote(f"{folder.name}.yaml")
    print(f"\nPut the module of your reward functions into {folder}, then:")
    print(f"cd {shlex.quote(str(folder))}\ngrpo fit {config}    # docs/coming-from-trl.md explains each option")


def _write(folder: Path, texts: dict[str, str]) -> None:
    try:
        folder.mkdir(parents=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
            print(folder / name)
    except FileExistsError as error:
        raise ConfigError(f"init: {folder} exists: give another name, or remove it") from error
    except OSError as error:
        raise ConfigError(f"init: {folder} cannot be written: {error.strerror}") from error
