"""What is said of an error that another library raised."""

from __future__ import annotations

import pytest

from grpo_lightning.errors import first_line


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no such layer\nTry another one."), "no such layer"),
        (OSError("\n  no such file  \n"), "no such file"),
        (ValueError(), "ValueError"),
        (AssertionError("\n"), "AssertionError"),
    ],
)
def test_the_first_line_of_an_error_or_its_type(error: Exception, text: str) -> None:
    assert first_line(error) == text
