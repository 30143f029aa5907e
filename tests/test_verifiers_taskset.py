"""The adapter for tasksets of the package ``verifiers``: its rows, its rewards, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_lightning.tasks import Tabular
from grpo_lightning.types import FinishReason, Prompt, Sample
from grpo_lightning.verifiers import FunctionVerifier
from tests.test_structure import ROOT

pytest.importorskip("verifiers.v1", reason="verifiers is not installed")

FOLDER = ROOT / "examples/verifiers"
TASKSET = """
import verifiers.v1 as vf

class Row(vf.Task[vf.TaskData]):
    @vf.reward(weight=0.5)
    async def reward(self, trace: vf.Trace{runtime}) -> float:
        return float(trace.last_reply) + len(trace.nodes)

class Rows(vf.Taskset[Row, vf.TasksetConfig]):
    def load(self):
        turns = [vf.UserMessage(content="1"), vf.AssistantMessage(content="2"), vf.UserMessage(content="3")]
        print("printed by the taskset")
        return [Row(vf.TaskData(prompt=turns, system_prompt="Count."), self.config.task) for _ in range(2)]

__all__ = ["Rows"]
"""


def rows_of(taskset: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "verifiers_taskset.py"), "rows", json.dumps({"id": taskset})]
    return subprocess.run(command, capture_output=True, text=True)


def judged(taskset: str, prompt: Prompt, completions: list[str]) -> list[float | str | None]:
    options = {"taskset": {"id": taskset}, "python": sys.executable}
    verifier = FunctionVerifier("examples.verifiers.verifiers_taskset.reward", options=options)
    samples = [Sample(prompt.messages, text, None, prompt.metadata, FinishReason.STOP) for text in completions]
    return [verdict.error or verdict.score for verdict in verifier.verify_batch(samples)]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{FOLDER}")
    monkeypatch.chdir(ROOT)
    (tmp_path / "counting.py").write_text(TASKSET.replace("{runtime}", ""))
    (tmp_path / "boxed.py").write_text(TASKSET.replace("{runtime}", ", runtime: vf.Runtime"))
    return tmp_path / "train.jsonl"


def test_the_prompts_are_the_tasksets_and_so_are_the_rewards(rows: Path) -> None:
    rows.write_text(rows_of("counting").stdout)
    (prompt,) = Tabular(str(rows), answer_column=None, metadata_columns=["task"], val_size=1).prompts("train")
    assert [turn["role"] for turn in prompt.messages] == ["system", "user", "assistant", "user"]
    # Half of the number and the five messages; a text that is not a number breaks its own row alone.
    values = judged("counting", prompt, ["7", "many", "-5"])
    assert (values[0], values[2]) == (6.0, 0.0)
    assert "ValueError" in str(values[1])


def test_the_example_is_scored_by_its_own_measure(rows: Path) -> None:
    rows.write_text(rows_of("reverse_words").stdout)
    prompt = Tabular(str(rows), answer_column=None, metadata_columns=["task"], val_size=1).prompts("train")[1]
    word = str(prompt.messages[-1]["content"]).split()[1]
    assert judged("reverse_words", prompt, [word[::-1], ""]) == [1.0, 0.0]


def test_rewards_that_need_a_runtime_are_refused(rows: Path) -> None:
    done = rows_of("boxed")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Row 0: has rewards that need a runtime" in done.stderr
