"""The configs, tiny decoders and templates that come with the project: ``configs/`` of a checkout or of a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent

CONFIGS = next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())
"""Where they are: inside the package if it was installed, beside it in a checkout of the repository."""


def shipped_config(name: str) -> str:
    """The path of a config: the user's own file, or the shipped one of that name.

    Args:
        name: a path; or ``quickstart``, ``quickstart.yaml`` or ``configs/quickstart.yaml`` for a shipped one.

    Returns:
        ``name`` itself if it is a file, or if nothing of that name is shipped.
    """
    file = CONFIGS / f"{name.removeprefix('configs/').removesuffix('.yaml')}.yaml"
    return str(file) if not Path(name).exists() and file.parent == CONFIGS and file.is_file() else name


def shipped_model(path: str) -> str:
    """The folder of a model: ``configs/tiny_decoder`` is the shipped one where the user has no such folder."""
    folder = CONFIGS / path.removeprefix("configs/")
    is_shipped = path.startswith("configs/") and not Path(path).exists() and folder.is_dir()
    return str(folder) if is_shipped else path
