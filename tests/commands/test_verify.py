"""``grpo verify``: the file of completions, what is said of each, and a run judged again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo_lightning.__main__ import main
from grpo_lightning.commands.verify.read import read_samples
from grpo_lightning.commands.verify.rejudge import rejudge
from grpo_lightning.commands.verify.report import report
from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Explanation, FinishReason, Sample, Verdict
from grpo_lightning.verifiers import LengthPenalty, MathVerifier, Verifier
from tests.cli.test_cli import few, only_run


def test_a_string_may_hold_what_other_places_take_for_the_end_of_a_line(tmp_path: Path) -> None:
    texts = ["a\u2028b", "a\u0085b", "a\u2029\x0bb", "a\nb"]
    file = tmp_path / "samples.jsonl"
    file.write_text(
        "\n".join(json.dumps({"completion": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8"
    )
    assert [sample.completion for sample in read_samples(file)] == texts


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"completion": 4}', "has a completion that is not text: 4; put it in quotes"),
        ('{"completion": null}', "has a completion that is not text: None"),
        ('{"completion": "4", "metadata": [1]}', r"has metadata that is not a JSON object: \[1\]"),
        ('{"completion": "4", "finish_reason": "eos"}', 'has finish_reason "eos": use one of stop, length, or omit'),
        ('{"completion": "4", "finish_reason": null}', "has finish_reason null: use one of stop, length"),
        ("[4]", r"must be a JSON object with a completion, not \[4\]"),
        ('{"answer": "4"}', "has no completion: add that key"),
    ],
)
def test_a_line_that_is_no_sample_is_named(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text(f'{{"completion": "3"}}\n\n{line}\n')
    with pytest.raises(ConfigError, match=rf"--samples: line 3 of .*samples\.jsonl {reason}"):
        read_samples(file)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_bytes('{"completion": "Ä"}'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"--samples: .*samples\.jsonl is not UTF-8 text .*: convert it"):
        read_samples(file)


# -- explanations ------------------------------------------------------------------------------------------------------


class Explains(Verifier):
    def verify(self, sample: Sample) -> Verdict:
        if sample.completion == "broken":
            raise OSError("the checker is gone")
        right = sample.completion == sample.answer
        why = Explanation(sample.completion, sample.answer, "they are the same" if right else "they differ")
        return Verdict(right, True, "" if right else "Try again.", explanation=why)


def test_each_completion_is_explained() -> None:
    samples = [Sample("", text, "5") for text in ("5", "6\n7", "broken")]
    lines = list(report("Explains", Explains(), samples))
    assert [line.split("reward")[0].split() for line in lines if line[:6].strip()] == [
        ["0", "correct"],
        ["1", "format", "only"],
        ["2", "error"],
        lines[-1].split("reward")[0].split(),
    ]
    text = "\n".join(lines)
    assert "answer:        5\n       compared with: 5\n       because:       they are the same\n" in text
    assert "answer:        6\n                      7\n" in text
    assert "because:       they differ\n       feedback:      Try again." in text
    assert "error:         OSError: the checker is gone" in text
    assert lines[-1].startswith("Explains: 3 completions: 1 correct, 1 format only, 0 wrong, 1 error; ")


# -- a run -------------------------------------------------------------------------------------------------------------


def record(number: int, completion: str, reward: float | None, **more: Any) -> dict[str, Any]:
    """What ``RolloutLogger`` writes, as far as it is read."""
    return {
        "id": f"train/0/0/{number}", "step": 0, "prompt": [{"role": "user", "content": "?"}], "completion": completion,
        "answer": "5", "metadata": {}, "correct": reward == 1, "format_valid": bool(reward), "reward": reward,
        "error": None, "finish_reason": "stop",
    } | more  # fmt: skip


def write_run(folder: Path, *records: dict[str, Any]) -> Path:
    rollouts = folder / "rollouts/001-from-step-000000"
    rollouts.mkdir(parents=True)
    (rollouts / "rank0-step-000000.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return folder


def test_a_run_is_judged_again(tmp_path: Path) -> None:
    run = write_run(
        tmp_path,
        record(0, "#### 5", 1.0),
        record(1, "#### 6", 0.5),
        record(2, "#### 7", 1.0),
        record(3, "#### 5", 1.0, finish_reason="length"),
        record(4, "#### 5", None, error="gone"),
        record(5, "five", 0.0),
        record(6, "#### 5</think>#### 5", 0.0, prompt_end="<think>\n"),
        record(7, "#### 5", 1.0, prompt_end="<think>\n"),
    )
    lines = list(rejudge(run, {"MathVerifier": MathVerifier()}, shown=2))
    assert [line for line in lines if not line.startswith("  ")] == [
        "train/0/0/2: correct (1.00) -> format only (0.50)  '#### 7'",
        "train/0/0/3: correct (1.00) -> wrong (0.00)  '#### 5'",
        "... and 3 more",
        "5 of 8 rollouts change",
        # By hand: (1 + .5 + 1 + 1 + 0 + 0 + 1) / 7, and (1 + .5 + .5 + 0 + 1 + 0 + 1 + 0) / 8.
        "mean reward: 0.6429 -> 0.5000",
    ]
    assert [line.split(maxsplit=1) for line in lines if line.startswith("    ") and "->" in line] == [
        ["1", "correct -> format only"],
        ["2", "correct -> wrong"],
        ["1", "wrong -> correct"],
        ["1", "error -> correct"],
    ]
    assert not any("wrong -> wrong" in line for line in lines)


def test_nothing_changes_under_the_same_verifiers(tmp_path: Path) -> None:
    run = write_run(tmp_path, record(0, "#### 5", 1.0), record(1, "#### 6", 0.5), record(2, "?", None, error="gone"))
    assert list(rejudge(run, {"MathVerifier": MathVerifier()}, 9))[-3:-1] == [
        "1 of 3 rollouts change",
        "      1  error -> wrong",
    ]


def test_a_reward_may_change_under_the_same_verdict(tmp_path: Path) -> None:
    run = write_run(tmp_path, record(0, "#### 5", 1.0))
    verifiers = {"MathVerifier": MathVerifier(), "LengthPenalty": LengthPenalty(1, 0, "characters")}
    assert "      1  same verdict, another reward" in list(rejudge(run, verifiers, 0))


def test_all_records_are_read_in_batches(tmp_path: Path) -> None:
    run = write_run(tmp_path, *(record(number, f"#### {number % 2 + 5}", 1.0) for number in range(600)))
    assert "300 of 600 rollouts change" in list(rejudge(run, {"MathVerifier": MathVerifier()}, 0))


def test_a_truncated_rollout_is_read_as_one(tmp_path: Path) -> None:
    run = write_run(tmp_path, record(0, "#### 5", 0.0, finish_reason=str(FinishReason.LENGTH)))
    accepting = {"MathVerifier": MathVerifier(accept_truncated=True)}
    assert "      1  wrong -> correct" in list(rejudge(run, accepting, 0))
    assert "0 of 1 rollouts change" in list(rejudge(run, {"MathVerifier": MathVerifier()}, 0))


def test_a_real_run_is_judged_again_by_its_own_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config", "configs/quickstart.yaml", "--warm_start", "null", "--model.init_args.policy.init", "random"]
    main(["fit", *config, *few(tmp_path)])
    run = only_run(tmp_path, "quickstart")
    capsys.readouterr()
    main(["verify", "--samples", str(run)])
    assert "0 of 8 rollouts change" in capsys.readouterr().out
    main(["verify", "--samples", str(run), "--model.init_args.verifiers", "[{class_path: LengthPenalty, init_args: "
          "{max_length: 1, buffer: 0}}]", "--show", "1"])  # fmt: skip
    out = capsys.readouterr().out
    assert "8 of 8 rollouts change" in out
    assert "... and 7 more" in out
    main(["verify", "quickstart", "--samples", str(run)])
    assert "0 of 8 rollouts change" in capsys.readouterr().out
    for wrong in (["--samples", str(tmp_path)], ["--samples", str(run), "--show", "few"]):
        with pytest.raises(SystemExit, match="2"):
            main(["verify", *config[:2], *wrong])
        assert "grpo: error: " in capsys.readouterr().err
