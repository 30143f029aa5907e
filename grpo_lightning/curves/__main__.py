"""``python -m grpo_lightning.curves docs/metrics.md``: write the tables of a page from the declaration."""

from __future__ import annotations

import sys
from pathlib import Path

from grpo_lightning.curves.page import with_tables

if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(with_tables(Path(name).read_text()))
