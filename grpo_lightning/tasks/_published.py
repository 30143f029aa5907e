"""The base of tasks over published data sets, whose columns are known."""

from __future__ import annotations

from typing import ClassVar

from grpo_lightning.tasks._load import Table
from grpo_lightning.tasks.tabular import Tabular


class Published(Tabular):
    """Rows of a data set with fixed columns.

    Args:
        path: the name of a data set on the hub, a local file, or a local folder with ``train.jsonl``, ``test.jsonl``
            (or ``.parquet``) and so on.
        name: the data set's config on the hub.
        val_size: number of train rows held out for validation if the data has no validation split.
        system_prompt: the system message put before every prompt.
        seed: random seed that selects the held-out rows.
        limit: keep only the first ``limit`` rows of each split.
        chat_template: a Jinja chat template to use instead of the tokenizer's, or ``plain``, which suits base models.
        prompt_template: the text of the user turn, in which ``{prompt}`` is the row's text. Default: the
            task's own.
        shots: number of worked examples before every prompt, as turns of the chat: the same train rows for every row.
            They are taken out of the train split.
    """

    columns: ClassVar[tuple[str, ...]]
    """The columns that the task needs."""

    def __init__(
        self,
        path: str,
        name: str | None,
        val_size: int,
        system_prompt: str | None,
        seed: int = 0,
        limit: int | None = None,
        chat_template: str | None = None,
        prompt_template: str | None = None,
        shots: int = 0,
    ) -> None:
        super().__init__(
            path,
            name,
            answer_column=None,
            val_size=val_size,
            seed=seed,
            limit=limit,
            system_prompt=system_prompt,
            chat_template=chat_template,
            shots=shots,
        )
        self.set_template(prompt_template)

    def _require_columns(self, table: Table) -> None:
        for column in self.columns:
            table.require(column, "data.task.init_args.path")
