"""Compare the completions of ``grpo test`` with those of lm-evaluation-harness, row by row.

python examples/lm_eval/same_answers.py RUN/test/TIME-ID lm_eval_out/MODEL/samples_grpo_gsm8k_TIME.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from grpo_lightning.stored import read_rollouts


def compare(test: Path, samples: Path) -> str:
    """One line per question that both answered differently, and how many they answered alike."""
    ours = {row["prompt"][-1]["content"]: row for row in read_rollouts(test) if row["sampled_for"] == "accuracy"}
    theirs = {row["doc"]["question"]: row for row in map(json.loads, samples.read_text().splitlines())}
    lines, same, verdicts = [], 0, 0
    questions = [question for question in theirs if question in ours]
    for question in questions:
        one, other = ours[question], theirs[question]
        (text,) = other["resps"][0]
        same += one["completion"] == text
        verdicts += one["correct"] == bool(other["exact_match"])
        if one["completion"] != text:
            lines.append(f"{question[:40]!r}: {one['completion'][-60:]!r} here, {text[-60:]!r} there")
    total = f"{same} of {len(questions)} completions are the same, and {verdicts} of the verdicts"
    return "\n".join([*lines, total])


if __name__ == "__main__":
    print(compare(Path(sys.argv[1]), Path(sys.argv[2])))
