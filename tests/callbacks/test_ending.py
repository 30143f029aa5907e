"""SIGTERM and Ctrl-C end an evaluation after its current batch: what is kept, what is said, and what comes after."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from grpo_lightning.__main__ import main
from grpo_lightning.stored import read_rollouts
from grpo_lightning.types import Sample, Verdict
from grpo_lightning.verifiers import Verifier
from tests.cli.test_cli import _in_the_repository, few, only_run

__all__ = ["_in_the_repository"]
BATCH, BATCHES = 4, 3


class Signals(Verifier):
    """Sends its process a signal, once, in the second batch."""

    def __init__(self, number: int) -> None:
        super().__init__(accept_truncated=True)
        self.number = number
        self.seen = 0

    def verify(self, sample: Sample) -> Verdict:
        # Before it starts, a run judges gold and wrong answers, which have no tokens.
        self.seen += sample.token_ids is not None
        if self.seen == BATCH + 1:
            os.kill(os.getpid(), self.number)
        return Verdict(correct=self.seen % BATCH == 0, format_valid=True)


@pytest.mark.parametrize(
    ("subcommand", "number", "said", "files"),
    [
        ("test", signal.SIGTERM, "SIGTERM", ["test_results.jsonl", "rollouts"]),
        ("validate", signal.SIGINT, "Ctrl-C", ["rollouts"]),
        ("predict", signal.SIGTERM, "SIGTERM", ["predictions.jsonl"]),
    ],
)
def test_a_signal_ends_an_evaluation_with_the_results_so_far(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], subcommand: str, number: int, said: str, files: list[str]
) -> None:
    verifier = {"class_path": f"{__name__}.Signals", "init_args": {"number": int(number)}}
    changes = {
        "warm_start": "null", "model.init_args.policy.init": "random", "data.task.init_args.val_size": 40,
        "model.init_args.verifiers": json.dumps([verifier]), "data.val_batch_size": BATCH,
    } | {f"trainer.limit_{stage}_batches": BATCHES for stage in ("val", "test", "predict")}  # fmt: skip
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit, match="1"):
        main([subcommand, "--config", "configs/quickstart.yaml", *few(tmp_path, **changes)])
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    run = only_run(tmp_path, "quickstart")
    out, err = capfd.readouterr()
    assert f"{said}: ending after this batch, with the results so far" in err
    assert ("press it again to stop at once" in err) is (number == signal.SIGINT)
    assert f"grpo: stopped: {said} ended the evaluation early: " in err
    for name in files:
        rows = list(read_rollouts(run)) if name == "rollouts" else (run / name).read_text().splitlines()
        assert len(rows) == 2 * BATCH, "two whole batches of three"
    assert (run / "test_unfinished.txt").is_file() is (subcommand == "test")
    if subcommand == "predict":
        return
    # By hand: 2 of 8 correct, Wilson: (0.25 + z2/16 -+ z sqrt(0.1875/8 + z2/256)) / (1 + z2/8), z2 = 3.8415.
    assert "accuracy: 0.250 (95 % interval 0.071 to 0.591), 8 prompts" in out
    assert f"every completion: grpo samples {run}" in out
    assert "/accuracy " in out, "Lightning's table comes too"
    assert "the results are those of 8 of " in err


def test_a_training_run_that_sigterm_ends_is_no_success(tmp_path: Path) -> None:
    """A scheduler takes the status 0, which Lightning's exception has, for a run that is finished."""
    verifier = {"class_path": f"{__name__}.Signals", "init_args": {"number": int(signal.SIGTERM)}}
    changes = {
        "warm_start": "null",
        "model.init_args.policy.init": "random",
        "model.init_args.verifiers": json.dumps([verifier]),
        "trainer.limit_val_batches": 0,
        "trainer.max_steps": 5,
    }
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", "configs/quickstart.yaml", *few(tmp_path, **changes)])
    assert ended.value.code == 1
    run = only_run(tmp_path, "quickstart")
    assert (run / "checkpoints/last.ckpt").is_file(), "it can be resumed"


def test_an_evaluation_that_runs_to_its_end_is_a_success(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    changes = {
        "warm_start": "null",
        "model.init_args.policy.init": "random",
        "data.pass_at_k": 2,
        "rollouts.format": "parquet",
    }
    main(["test", "--config", "configs/quickstart.yaml", *few(tmp_path, **changes)])
    run = only_run(tmp_path, "quickstart")
    assert "early" not in capfd.readouterr().err
    rows = list(read_rollouts(run))
    assert Counter(row["sampled_for"] for row in rows) == {"accuracy": 4, "pass@k": 8}
    assert len({row["id"] for row in rows}) == 12
    assert sum(len(row["token_ids"]) for row in rows) == sum(row["tokens"] for row in rows) > 0
    main(["verify", "--samples", str(run)])
    assert "0 of 12 rollouts change" in capfd.readouterr().out
    main(["samples", str(run)])
    assert "12 rollouts of 1 step\n" in capfd.readouterr().out
