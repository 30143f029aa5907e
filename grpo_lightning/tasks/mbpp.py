"""MBPP: mostly basic Python problems, each with a few assert lines (Austin et al. 2021, arXiv 2108.07732)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks._load import Table
from grpo_lightning.tasks._published import Published
from grpo_lightning.types import Prompt

SYSTEM_PROMPT = (
    "Solve the problem in Python. "
    "Give the whole program, without tests or examples, in one block that starts with ```python and ends with ```."
)


def fenced(program: str) -> str:
    """Format a program as the system prompt asks for it."""
    return f"```python\n{program.strip()}\n```"


class MBPP(Published):
    """MBPP from the hub or a local file; the program must pass the assert lines of its row.

    Rows of both configs work: the task is in ``text`` (``full``) or ``prompt`` (``sanitized``), the reference program
    in ``code``, the assert lines in ``test_list``, and their setup in ``test_setup_code`` and ``test_imports``, if
    these columns exist. The prompt template gets the task as ``{prompt}`` and the assert lines that it shows as
    ``{tests}``. ``CodeVerifier`` receives the assert lines and their setup in ``metadata["tests"]``.

    Args:
        path: the name of the data set on the hub, a local file, or a local folder with ``train.jsonl``, ``test.jsonl``
            and so on.
        name: the data set's config on the hub, ``full`` or ``sanitized``.
        show_tests: number of assert lines that the prompt shows. At least one, since only they state the function's
            name; a policy that sees all of them can return their values without solving anything.
        val_size: number of train rows held out if the data has no validation split; the hub's data has one.
        system_prompt: the system message put before every task; it asks for one fenced block.
        options: options of :class:`Published`.
    """

    default_template = "{prompt}\n\nThe program must pass tests such as:\n{tests}"
    placeholders = ("prompt", "tests")
    columns = ("code", "test_list")

    def __init__(
        self,
        path: str = "google-research-datasets/mbpp",
        name: str | None = "full",
        show_tests: int = 1,
        val_size: int = 50,
        system_prompt: str | None = SYSTEM_PROMPT,
        **options: Any,
    ) -> None:
        super().__init__(path, name, val_size, system_prompt, **options)
        if show_tests < 1:
            raise ConfigError(f"data.task.init_args.show_tests: {show_tests} must be at least 1")
        self.show_tests = show_tests

    def _require_columns(self, table: Table) -> None:
        for column in (_task_column(table), *self.columns):
            table.require(column, "data.task.init_args.path")

    def _prompt(self, table: Table, row: int) -> Prompt:
        tests = _lines(table, row, "test_list")
        if not tests:
            raise ConfigError(f"{table.where(row)} has no assert lines in column 'test_list'; remove the row")
        setup = str(table.rows[row].get("test_setup_code") or "")
        shown = "\n".join(tests[: self.show_tests])
        task = str(table.value(row, _task_column(table))).strip()
        return Prompt(
            self.messages(task, tests=shown),
            metadata={"tests": "\n".join(filter(None, [*_lines(table, row, "test_imports"), setup, *tests]))},
            solution=fenced(str(table.value(row, "code")).replace("\r\n", "\n")),
        )


def _task_column(table: Table) -> str:
    return "text" if "text" in table.columns else "prompt"


def _lines(table: Table, row: int, column: str) -> Sequence[str]:
    lines = table.rows[row].get(column) or []
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ConfigError(f"{table.where(row)}: column {column!r} is not a list of strings; repair or remove the row")
    return lines
