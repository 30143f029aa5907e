"""Builds the data sets of reasoning-gym. Runs in separate processes: the import takes a second."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

INSTALL = "reasoning-gym is not installed: pip install 'grpo-lightning[gym]'"


def source_of(name: str, difficulty: int | None, options: dict[str, Any]) -> str:
    """Return the text that identifies a data set, from which it is built."""
    return json.dumps({"name": name, "difficulty": difficulty, "options": options}, sort_keys=True)


def build_dataset(source: str, seed: int, size: int) -> Any:
    """Build a data set of reasoning-gym.

    Args:
        source: what :func:`source_of` returns.
        seed: the seed of its first row; the seed of row ``i`` is ``seed + i``.
        size: number of rows.

    Raises:
        ValueError: the data set, difficulty or option does not exist; the message says what does.
    """
    import reasoning_gym  # noqa: F401 - registers the data sets
    from reasoning_gym.factory import CURRICULA, DATASETS

    given = json.loads(source)
    name, difficulty, options = given["name"], given["difficulty"], given["options"]
    if name not in DATASETS or name == "composite":
        names = sorted(set(DATASETS) - {"composite"})
        raise ValueError(f"name: reasoning-gym has no data set {name!r}; it has {', '.join(names)}")
    dataset_class, config_class = DATASETS[name]
    fields = {field.name for field in dataclasses.fields(config_class)} - {"seed", "size"}
    for key in options:
        if key not in fields:
            raise ValueError(f"options: {name} has no option {key!r}; it has {', '.join(sorted(fields))}")
    config = config_class()
    if difficulty is not None:
        if name not in CURRICULA:
            raise ValueError(f"difficulty: {name} has no levels of difficulty; remove the key, and use options")
        curriculum = CURRICULA[name]()
        levels = max(len(attribute.levels) for attribute in curriculum.attributes.values())
        if not 0 <= difficulty < levels:
            raise ValueError(f"difficulty: {difficulty} is not a level of {name}, which has 0 to {levels - 1}")
        curriculum.set_global_level(difficulty)
        config = curriculum.generate_configuration()
    try:
        config = dataclasses.replace(config, **options, seed=seed, size=size)
        if hasattr(config, "validate"):
            config.validate()
        return dataset_class(config)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"options: {name} does not take {options}: {error}") from error
