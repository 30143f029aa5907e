"""The Hugging Face hub as a place to load from: what is a name there, and whether it can be reached."""

from __future__ import annotations

import difflib
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

PATIENCE_S = 5.0
"""How long a connection may take to open. huggingface_hub tries for half a minute per file."""

REMEMBERED_S = 60.0
"""How long what was found is not looked up again."""

_looked_up: tuple[float, bool] | None = None


def is_name(path: str) -> bool:
    """Whether a path that is not there may be a name on the hub: ``owner/name``, or a bare name as the oldest have."""
    return re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", path) is not None


def no_folder(path: str) -> str:
    """A sentence about a folder that does not exist, with a name that is nearly the same, if there is one."""
    parent = Path(path).expanduser().parent
    try:
        names = [entry.name for entry in parent.iterdir() if entry.is_dir()]
    except OSError:  # it is not there, or not for us to read
        names = []
    near = difflib.get_close_matches(Path(path).name, names, 1, 0.75)
    return f"there is no folder {path}" + (f" (did you mean {Path(path).parent / near[0]}?)" if near else "")


def why_not(path: str, reason: str) -> str:
    """Why neither the disk nor the hub has what a path names.

    Args:
        path: it may be a name on the hub.
        reason: what the library says.
    """
    text = no_folder(path)
    if not is_name(path):
        return f"{text}, and only a name of the form owner/name is looked for on the hub"
    if is_offline():
        return f"{text}, it is not in the local cache of the hub, and HF_HUB_OFFLINE is set"
    if not is_reachable():
        return f"{text}, it is not in the local cache of the hub, and {_endpoint()} cannot be reached"
    return f"{text}, and it was not loaded from the hub ({reason})"


@contextmanager
def from_hub(path: str) -> Iterator[None]:
    """Load what a path names. Without a connection to the hub, look into its local cache alone.

    Args:
        path: a folder or file, or a name on the hub.
    """
    if Path(path).exists() or not is_name(path) or is_offline() or is_reachable():
        yield
        return
    constants = _constants()
    datasets: Any = sys.modules.get("datasets.config")
    constants.HF_HUB_OFFLINE = True
    if datasets is not None:
        before, datasets.HF_HUB_OFFLINE = datasets.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False
        if datasets is not None:
            datasets.HF_HUB_OFFLINE = before


def is_offline() -> bool:
    """Whether the hub is switched off, by ``HF_HUB_OFFLINE`` for example."""
    return bool(_constants().HF_HUB_OFFLINE)


def is_reachable() -> bool:
    """Whether a connection to the hub, or to the proxy before it, opens in time."""
    global _looked_up
    if _looked_up is None or time.monotonic() - _looked_up[0] > REMEMBERED_S:
        host, port = _address(_endpoint())
        _looked_up = time.monotonic(), _opens(host, port)
    return _looked_up[1]


def _opens(host: str, port: int) -> bool:
    opened: list[bool] = []

    def connect() -> None:
        try:
            # One address that does not answer leaves time for the next one.
            socket.create_connection((host, port), PATIENCE_S / 3).close()
            opened.append(True)
        except OSError:
            pass

    # In a thread: looking up an address has no limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    return bool(opened)


def _address(url: str) -> tuple[str, int]:
    """Where a connection for this URL goes: its host, or the proxy of the environment."""
    target = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(target.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "//" in proxy else f"http://{proxy}")
    return target.hostname or "", target.port or (443 if target.scheme == "https" else 80)


def _endpoint() -> str:
    return str(_constants().ENDPOINT)


def _constants() -> Any:
    from huggingface_hub import constants

    return constants
