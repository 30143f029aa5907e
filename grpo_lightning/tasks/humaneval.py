"""HumanEval: functions to complete, each with a ``check`` function (Chen et al. 2021, arXiv 2107.03374)."""

from __future__ import annotations

import ast
from typing import Any

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks._load import Table
from grpo_lightning.tasks._published import Published
from grpo_lightning.tasks.mbpp import SYSTEM_PROMPT, fenced
from grpo_lightning.types import Prompt


class HumanEval(Published):
    """Rows as HumanEval has them, from the hub or a local file: complete a function of which the start is given.

    The columns are ``prompt`` (the function's head and docstring, perhaps after imports and helpers),
    ``canonical_solution`` (its body), ``test`` (a function ``check(candidate)``) and ``entry_point``. The last two come
    to ``CodeVerifier`` in ``metadata``.

    The data set on the hub has a ``test`` split and no other, for ``grpo test``; to train on rows of this form, give a
    file or folder of your own.

    Args:
        path: the data set's name on the hub, a local file, or a local folder that holds ``train.jsonl``, ``test.jsonl``
            and the like.
        name: the data set's config on the hub.
        val_size: how many train rows are held out where the data has no validation split.
        system_prompt: put before every function as the system message; asks for one fenced block.
        options: of :class:`Published`.
    """

    columns = ("prompt", "canonical_solution", "test", "entry_point")

    def __init__(
        self,
        path: str = "openai/openai_humaneval",
        name: str | None = None,
        val_size: int = 50,
        system_prompt: str | None = SYSTEM_PROMPT,
        **options: Any,
    ) -> None:
        super().__init__(path, name, val_size, system_prompt, **options)

    def _prompt(self, table: Table, row: int) -> Prompt:
        head = str(table.value(row, "prompt"))
        entry_point = str(table.value(row, "entry_point"))
        try:
            helpers = _helpers(head, entry_point)
        except SyntaxError as error:
            raise ConfigError(
                f"{table.where(row)}: column 'prompt' is not Python ({error}); repair or remove the row"
            ) from error
        return Prompt(
            self.messages(f"Complete this function:\n\n{fenced(head)}"),
            metadata={"tests": f"{helpers}\n{table.value(row, 'test')}", "entry_point": entry_point},
            solution=fenced(f"{head}{table.value(row, 'canonical_solution')}"),
        )


def _helpers(head: str, entry_point: str) -> str:
    """What the prompt defines beside the function, with its imports.

    Some tests call these. The completion has them, too, but a test must not trust a program with its own helpers.
    """
    nodes = ast.parse(head).body
    return "\n".join(ast.unparse(node) for node in nodes if getattr(node, "name", None) != entry_point)
