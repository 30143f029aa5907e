"""GSM8K: grade school word problems with worked solutions (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

import re

from grpo_lightning.tasks._load import Table
from grpo_lightning.tasks.tabular import Tabular
from grpo_lightning.types import ConfigError, Prompt

SYSTEM_PROMPT = (
    "Solve the problem step by step. "
    "Then write the final answer, a number without units, on a last line of its own in the form: #### N"
)

# The data set marks its calculations for a calculator tool: 48/2 = <<48/2=24>>24.
_ANNOTATION = re.compile(r"<<[^<>]*>>")


class GSM8K(Tabular):
    """GSM8K from the hub or a local folder; the answer is the number after ``####``.

    The test split is the published one. The validation split is held out of the train rows.

    Args:
        path: the data set's name on the hub, or a local folder that holds ``train.jsonl`` and ``test.jsonl`` (or
            ``.parquet``) with the columns ``question`` and ``answer``.
        name: the data set's config on the hub, ``main`` or ``socratic``.
        val_size: how many train rows are held out for validation.
        seed: chooses the held-out rows.
        limit: keep only the first rows of each split.
        system_prompt: put before every question as the system message; asks for the format of the answer.
        chat_template: a Jinja chat template in place of the tokenizer's own.
    """

    def __init__(
        self,
        path: str = "openai/gsm8k",
        name: str | None = "main",
        val_size: int = 200,
        seed: int = 0,
        limit: int | None = None,
        system_prompt: str | None = SYSTEM_PROMPT,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(
            path,
            name,
            prompt_column="question",
            val_size=val_size,
            seed=seed,
            limit=limit,
            system_prompt=system_prompt,
            chat_template=chat_template,
        )

    def _prompt(self, table: Table, row: int) -> Prompt:
        reasoning, mark, final = str(table.value(row, "answer")).rpartition("####")
        answer = final.replace(",", "").strip()
        if not mark or not answer:
            raise ConfigError(
                f"{table.where(row)} has no '#### N' at the end of column 'answer'; "
                "repair the row, or read the data with Tabular"
            )
        solution = f"{_ANNOTATION.sub('', reasoning).rstrip()}\n#### {answer}".lstrip()
        return Prompt(self._messages(table, row), answer, solution=solution)
