"""What tasks over published data sets share: rows whose columns are known."""

from __future__ import annotations

from typing import ClassVar

from grpo_lightning.tasks._load import Table
from grpo_lightning.tasks.tabular import Tabular


class Published(Tabular):
    """Rows of a data set that has the same columns everywhere.

    Args:
        path: the data set's name on the hub, a local file, or a local folder that holds ``train.jsonl``, ``test.jsonl``
            (or ``.parquet``) and the like.
        name: the data set's config on the hub.
        val_size: how many train rows are held out for validation, where the data has no validation split.
        system_prompt: put before every prompt as the system message.
        seed: chooses the held-out rows.
        limit: keep only the first rows of each split.
        chat_template: a Jinja chat template in place of the tokenizer's own.
    """

    columns: ClassVar[tuple[str, ...]]
    """The columns that it needs."""

    def __init__(
        self,
        path: str,
        name: str | None,
        val_size: int,
        system_prompt: str | None,
        seed: int = 0,
        limit: int | None = None,
        chat_template: str | None = None,
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
        )

    def _require_columns(self, table: Table) -> None:
        for column in self.columns:
            table.require(column, "data.task.init_args.path")
