"""What the tests of the vLLM engine share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.standin import Running


@pytest.fixture
def path(tiny_model: Callable[[str], str]) -> str:
    return tiny_model("llama")


@pytest.fixture
def served(path: str) -> Iterator[Running]:
    # Where the web framework is missing, the files that ask for this are skipped.
    from tests.standin import StandIn, running

    with running(StandIn(path)) as server:
        yield server
