"""What other libraries raise on a user's mistake, as one sentence that names the key."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from grpo_lightning.errors import ConfigError

SEEDS = 2**32


def check_seed(seed: Any) -> None:
    """Check that random number generators take a seed.

    Raises:
        ConfigError: no generator takes it.
    """
    if seed is None:
        raise ConfigError(
            "seed_everything: null is not a seed: give a number, true for one at random, or false for none"
        )
    if not 0 <= seed < SEEDS:
        raise ConfigError(f"seed_everything: must be from 0 to {SEEDS - 1}, not {seed}")


def refuse_trainer_options(trainer: Any) -> None:
    """Options of the trainer that belong to automatic optimization, with what to use in their place, or make no sense.

    Raises:
        ConfigError: one of them is set.
    """
    if trainer.gradient_clip_val is not None:
        raise ConfigError("trainer.gradient_clip_val: set model.max_grad_norm instead")
    interval = trainer.val_check_interval
    if isinstance(interval, int | float) and interval <= 0:
        raise ConfigError(
            f"trainer.val_check_interval: must be above 0, not {interval}: to validate never, set limit_val_batches: 0"
        )
    if trainer.accumulate_grad_batches != 1:
        raise ConfigError("trainer.accumulate_grad_batches: set model.max_tokens_per_microbatch instead")


def construction_error(error: BaseException, config: Any) -> ConfigError:
    """Why a class that a config names could not be built, out of what the parser made of it.

    Args:
        error: a user's mistake, or anything else that a constructor raised, in the parser's wrapping.
        config: the config that names the class.
    """
    cause, named = error, dict(_classes(config))
    while not isinstance(cause, ConfigError) and (cause.__cause__ or cause.__context__) is not None:
        # In a list, the parser then tries what else the option may be, and only the text of this error is left.
        lacks = re.search(r"Problem with given class_path '(?:\w+\.)*(\w+)':\s*(Requirement .+)", str(cause))
        if lacks is not None and lacks[1] in named:
            return ConfigError(f"{named[lacks[1]]}: {lacks[1]} cannot be built: {lacks[2]}")
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    if isinstance(cause, ConfigError):
        # Reward functions of TRL are named in configs that grpo init translates.
        package = cause.__cause__.name if isinstance(cause.__cause__, ModuleNotFoundError) else None
        return ConfigError(f"{cause}: pip install trl") if package == "trl" else cause
    frames = list(traceback.walk_tb(cause.__traceback__))
    built = [type(frame.f_locals.get("self")).__name__ for frame, _ in frames if frame.f_code.co_name == "__init__"]
    name = next((name for name in built if name in named), None)
    what = f"{named[name]}: {name}" if name else "the config"
    place = ""
    if not isinstance(cause, ImportError) and frames:
        frame, line = frames[-1]
        place = f" ({Path(frame.f_code.co_filename).name} line {line})"
    return ConfigError(f"{what} cannot be built: {type(cause).__name__}: {one_line(cause)}{place}")


def trainer_error(error: Exception) -> ConfigError:
    """Why Lightning's Trainer refuses its options."""
    if re.search(r"No supported gpu backend|can not run on your system", str(error)):
        return ConfigError("trainer.accelerator: this machine has no such device: set it to auto or cpu")
    return ConfigError(f"trainer: {one_line(error)}")


@contextmanager
def as_sentences() -> Iterator[None]:
    """Turn mistakes that Lightning notices inside into :class:`ConfigError`; other errors pass as they are."""
    try:
        yield
    except MisconfigurationException as error:
        raise ConfigError(str(error)) from error
    except ValueError as error:
        found = re.match(r" *`val_check_interval` \((\d+)\) must be less than or equal to the number", str(error))
        if found is None:
            raise
        raise ConfigError(
            f"trainer.val_check_interval: an epoch has fewer than {found[1]} steps: set it to 1.0 to validate at the "
            "end of epochs, or omit check_val_every_n_epoch to count steps over all epochs"
        ) from error
    except RuntimeError as error:
        mistake = run_error(error)
        if mistake is None:
            raise
        raise mistake from error


def run_error(error: RuntimeError) -> ConfigError | None:
    """A user's mistake that Lightning notices only in the run; ``None`` for any other error."""
    found = re.match(r"Early stopping conditioned on metric `(.*?)` which is not available.*?: (.*)", str(error))
    if found is None:
        return None
    return ConfigError(
        f"trainer.callbacks: EarlyStopping.monitor: nothing is logged as {found[1]}: use one of {found[2]}"
    )


def one_line(error: BaseException) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split())


def _classes(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Names of the classes in a config, with their keys as they are written on the command line."""
    items: Any = ()
    if isinstance(config, Namespace | dict):
        config = vars(config) if isinstance(config, Namespace) else config
        if "class_path" in config:
            yield str(config["class_path"]).rpartition(".")[2], key
        items = ((name, value) for name, value in config.items())
    elif isinstance(config, list):
        items = (("", value) for value in config)
    for name, value in items:
        yield from _classes(value, key if name in ("", "init_args") else f"{key}.{name}".strip("."))
