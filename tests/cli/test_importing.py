"""Imports without garbage collection meanwhile."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_lightning.cli.importing import importing

ROOT = Path(__file__).parents[2]

# A process in which nothing large has been imported yet.
PROGRAM = """
import gc, sys
from grpo_lightning.cli.importing import importing
try:
    with importing():
        assert not gc.isenabled()
        import nothing_of_that_name
except ImportError:
    print(gc.isenabled(), gc.get_freeze_count() > 0)
with importing():
    import json.tool
print(gc.isenabled(), gc.get_freeze_count() > 0)
gc.disable()
with importing():
    pass
print(gc.isenabled())
"""


def test_collection_is_off_inside_and_on_again_whatever_happens() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["True False", "True True", "False"]


def test_a_program_with_garbage_of_its_own_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    with importing():
        assert gc.isenabled()
