"""``grpo check``: do the gold answers satisfy the verifiers?"""

from __future__ import annotations

from collections.abc import Sequence

from grpo_lightning.cli.grpo_cli import parse, set_up_output
from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks.base import check_gold


def main(args: Sequence[str]) -> None:
    """Score every gold answer in the expected format, and report those that fail.

    Raises:
        ConfigError: a gold answer does not satisfy its verifier.
    """
    set_up_output()
    cli = parse(list(args))
    assert cli.datamodule is not None
    task, verifiers = cli.datamodule.task, list(cli.model.verifiers.values())
    failures = list(check_gold(task, verifiers))
    for failure in failures[:20]:
        verdict = failure.verdict
        print(
            f"{failure.split} row {failure.row}: {failure.verifier} finds {failure.completion!r} not correct: "
            f"{verdict.error or verdict.feedback}"
        )
    if failures:
        raise ConfigError(f"data.task: {len(failures)} gold answers do not satisfy their own verifier")
    print(f"{type(task).__name__}: every gold answer that was checked is correct to {', '.join(cli.model.verifiers)}")
