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
    """Rows in the format of HumanEval, from the hub or a local file: complete a function whose beginning is given.

    The columns are ``prompt`` (the function's signature and docstring, possibly after imports and helpers),
    ``canonical_solution`` (its body), ``test`` (a function ``check(candidate)``) and ``entry_point``. ``CodeVerifier``
    receives the last two in ``metadata``. The prompt template gets the beginning in a fenced block.

    The data set on the hub has only a ``test`` split, for ``grpo test``. To train on rows of this format, give your own
    file or folder.

    Args:
        path: the name of the data set on the hub, a local file, or a local folder with ``train.jsonl``, ``test.jsonl``
            and so on.
        name: the data set's config on the hub.
        val_size: number of train rows held out if the data has no validation split.
        system_prompt: the system message put before every function; it asks for one fenced block.
        options: options of :class:`Published`.
    """

    default_template = "Complete this function:\n\n{prompt}"
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
            self.messages(fenced(head)),
            metadata={"tests": f"{helpers}\n{table.value(row, 'test')}", "entry_point": entry_point},
            solution=fenced(f"{head}{table.value(row, 'canonical_solution')}"),
        )


def _helpers(head: str, entry_point: str) -> str:
    """Return the imports and helpers that the prompt defines besides the function.

    Some tests call the helpers. The completion contains them too, but a test must not rely on the program's own copies.
    """
    nodes = ast.parse(head).body
    return "\n".join(ast.unparse(node) for node in nodes if getattr(node, "name", None) != entry_point)
