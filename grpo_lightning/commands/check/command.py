"""``grpo check``: do the verifiers tell the gold answers from wrong ones?"""

from __future__ import annotations

from collections.abc import Sequence

from grpo_lightning.cli.grpo_cli import parse, set_up_output
from grpo_lightning.errors import ConfigError
from grpo_lightning.tasks.controls import check_controls


def main(args: Sequence[str]) -> None:
    """Score every gold answer in the expected format and a wrong one beside it, and report the rows that fail.

    Raises:
        ConfigError: a gold answer does not satisfy its verifier, or a certainly wrong one does.
    """
    set_up_output()
    cli = parse(list(args))
    assert cli.datamodule is not None
    task, verifiers = cli.datamodule.task, list(cli.model.verifiers.values())
    failures = list(check_controls(task, verifiers))
    for failure in failures[:20]:
        print(failure)
    if failures:
        kinds = {
            "gold answers do not satisfy their own verifier": [failure.control == "gold" for failure in failures],
            "certainly wrong answers do": [
                failure.control == "wrong" and not failure.verdict.error for failure in failures
            ],
            "rows cannot be judged": [
                failure.control == "wrong" and bool(failure.verdict.error) for failure in failures
            ],
        }
        counts = ", ".join(f"{sum(these)} {kind}" for kind, these in kinds.items() if any(these))
        raise ConfigError(f"data.task: {counts}: repair or remove those rows, or take another verifier")
    print(
        f"{type(task).__name__}: every gold answer that was checked is correct to {', '.join(cli.model.verifiers)}, "
        "and no certainly wrong one is"
    )
