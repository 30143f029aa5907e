"""The task file for lm-evaluation-harness: its prompt and parser are ours, and so are the answers it gets."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
import yaml

from grpo_lightning.__main__ import main
from grpo_lightning.tasks.gsm8k import SYSTEM_PROMPT
from tests.cli.test_cli import few, only_run
from tests.tiny import save_tiny_model

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples/lm_eval"
TASK = yaml.safe_load((FOLDER / "grpo_gsm8k.yaml").read_text())


def test_the_task_file_has_the_prompt_of_the_task() -> None:
    assert TASK["description"] == SYSTEM_PROMPT
    assert (TASK["dataset_path"], TASK["dataset_name"]) == ("openai/gsm8k", "main")


@pytest.mark.parametrize(
    ("text", "answer"), [("2\n#### 1,234", "1,234"), ("#### 3\n#### $4.50.", "4.50"), ("####-5", "-5"), ("so 7", None)]
)
def test_its_pattern_reads_the_last_answer(text: str, answer: str | None) -> None:
    pattern = TASK["filter_list"][0]["filter"][0]["regex_pattern"]
    assert (re.findall(pattern, text) or [None])[-1] == answer


def test_lm_eval_gives_the_same_greedy_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    monkeypatch.chdir(ROOT)
    model = save_tiny_model(tmp_path / "model", "llama", seed=1)  # its greedy answers differ, and some end
    rows = [{"question": f"{'What' * (n % 3)} are {n} and {n * n}?", "answer": f"#### {n}"} for n in range(12)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    local = {
        "include": str(FOLDER / "grpo_gsm8k.yaml"), "task": "local", "dataset_path": "json", "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "test.jsonl")}},
    }  # fmt: skip
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/local.yaml").write_text(yaml.safe_dump(local))
    found = lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": model, "dtype": "float32"}, tasks=["local"], device="cpu",
        batch_size=4, task_manager=lm_eval.tasks.TaskManager(include_path=str(tmp_path / "tasks")),
        apply_chat_template=True, gen_kwargs={"max_gen_toks": 12}, log_samples=True, bootstrap_iters=0,
    )  # fmt: skip
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(json.dumps(sample, default=str) + "\n" for sample in found["samples"]["local"]))
    changes = {
        "model.init_args.policy.path": model, "model.init_args.policy.dtype": "float32",
        "trainer.precision": "32-true", "data.task.init_args.path": tmp_path, "data.task.init_args.val_size": 2,
        "data.sampling.max_new_tokens": 12, "trainer.limit_test_batches": 3,
    }  # fmt: skip
    main(["test", "--config", "configs/lfm_gsm8k.yaml", *few(tmp_path, **changes)])
    compare = runpy.run_path(str(FOLDER / "same_answers.py"))["compare"]
    said = compare(only_run(tmp_path, "lfm_gsm8k"), samples)
    assert said == "12 of 12 completions are the same, and 12 of the verdicts"
    assert len({str(sample["resps"]) for sample in found["samples"]["local"]}) == 12
    samples.write_text(samples.read_text().replace('"resps": [["', '"resps": [["!', 1))
    said = compare(only_run(tmp_path, "lfm_gsm8k"), samples)
    assert said.splitlines()[1:] == ["11 of 12 completions are the same, and 12 of the verdicts"]
