"""Tiny real models, built on the spot: nothing is downloaded, nothing needs a GPU."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

# The tests share the cores. Those that start processes hand this on.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import settings

from grpo_lightning.curves import CURVES
from tests.processes import process_state_kept
from tests.tiny import save_tiny_model

torch.set_num_threads(1)

# A property holds or does not, however busy the machine is.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


def pytest_collection() -> None:
    """Collect no garbage while the tests import: what is imported stays."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage from here on, without going through all imports, which takes 0.3 s each time."""
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _own_process_state() -> Iterator[None]:
    with process_state_kept():
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """``tiny_model("llama" | "qwen3" | "qwen3_5" | "gemma3" | "lfm2" | "lfm3")`` is the folder of such a model."""
    folders: dict[str, str] = {}

    def build(kind: str) -> str:
        if kind not in folders:
            folders[kind] = save_tiny_model(tmp_path_factory.mktemp(kind), kind)
        return folders[kind]

    return build


@pytest.fixture(params=["llama", "lfm2"])
def model_path(request: pytest.FixtureRequest, tiny_model: Callable[[str], str]) -> str:
    """The same test on both shapes: attention only, and convolution with attention."""
    return tiny_model(request.param)


@pytest.fixture
def _own_curves() -> Iterator[None]:
    """Forget the curves that a test declares: they are for its own runs."""
    declared = dict(CURVES)
    yield
    CURVES.clear()
    CURVES.update(declared)


@pytest.fixture
def gsm8k_folder() -> str:
    folder = Path(__file__).parents[2] / "shared" / "data" / "gsm8k"
    if not folder.is_dir():
        pytest.skip("the real GSM8K rows are not at hand")
    return str(folder)
