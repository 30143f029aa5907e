"""GSM8K: grade school word problems with worked solutions (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

import re
from typing import Any

from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks._load import Table
from grpo_lightning.tasks._published import Published
from grpo_lightning.types import Prompt

SYSTEM_PROMPT = (
    "Solve the problem step by step. "
    "Then write the final answer, a number without units, on a last line of its own in the form: #### N"
)

# The data set annotates its calculations for a calculator tool: 48/2 = <<48/2=24>>24.
_ANNOTATION = re.compile(r"<<[^<>]*>>")


class GSM8K(Published):
    """GSM8K from the hub or a local folder; the answer is the number after ``####``.

    The test split is the published one. The validation split is held out from the train rows.

    Args:
        path: the name of the data set on the hub, or a local folder with ``train.jsonl`` and ``test.jsonl`` (or
            ``.parquet``) that have the columns ``question`` and ``answer``.
        name: the data set's config on the hub, ``main`` or ``socratic``.
        val_size: number of train rows held out for validation.
        system_prompt: the system message put before every question; it states the answer format.
        options: options of :class:`Published`.
    """

    columns = ("question", "answer")

    def __init__(
        self,
        path: str = "openai/gsm8k",
        name: str | None = "main",
        val_size: int = 200,
        system_prompt: str | None = SYSTEM_PROMPT,
        **options: Any,
    ) -> None:
        super().__init__(path, name, val_size, system_prompt, **options)

    def _prompt(self, table: Table, row: int) -> Prompt:
        reasoning, mark, final = str(table.value(row, "answer")).rpartition("####")
        answer = final.replace(",", "").strip()
        if not mark or not answer:
            raise ConfigError(
                f"{table.where(row)} has no '#### N' at the end of column 'answer'; "
                "repair the row, or read the data with Tabular"
            )
        solution = f"{_ANNOTATION.sub('', reasoning).rstrip()}\n#### {answer}".lstrip()
        return Prompt(self.messages(str(table.value(row, "question"))), answer, solution=solution)
