"""Weights cast once for several passes, where autocast would cast them in every one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def cached_casts() -> Iterator[None]:
    """Autocast keeps its casts of float32 weights inside; the weights must not change there. No autocast, no effect.

    Lightning's autocast casts a weight anew at every use. Autocast caches those alone that require a gradient.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(True)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
        torch.clear_autocast_cache()
