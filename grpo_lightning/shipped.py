"""The configs, tiny decoders and templates that come with the project: ``configs/`` of a checkout or of a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent

CONFIGS = next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())
"""Where they are: inside the package if it was installed, beside it in a checkout of the repository."""


def shipped_config(name: str) -> str:
    """Return the path of a config: the user's own file, or the shipped one of that name.

    Args:
        name: a path; or ``quickstart``, ``quickstart.yaml`` or ``configs/quickstart.yaml`` for a shipped one, and
            ``models/qwen3_0.6b`` for one in a subfolder.

    Returns:
        ``name`` itself if it is a file, or if nothing of that name is shipped.
    """
    shipped = name.removeprefix("configs/").removesuffix(".yaml")
    return name if Path(name).exists() or shipped not in shipped_names() else str(CONFIGS / f"{shipped}.yaml")


def shipped_names() -> list[str]:
    """The names of the shipped configs."""
    files = sorted(CONFIGS.rglob("*.yaml"), key=lambda file: (len(file.parts), file))
    return [file.relative_to(CONFIGS).as_posix().removesuffix(".yaml") for file in files]


def shipped_model(path: str) -> str:
    """Return the folder of a model: ``configs/tiny_decoder`` is the shipped one where the user has no such folder."""
    folder = CONFIGS / path.removeprefix("configs/")
    is_shipped = path.startswith("configs/") and not Path(path).exists() and (folder / "config.json").is_file()
    return str(folder) if is_shipped else path
