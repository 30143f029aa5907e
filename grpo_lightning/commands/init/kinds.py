"""The kinds of data that ``grpo init`` starts from: the task's part of the config, the verifier, and sample rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grpo_lightning.commands.init.shop import shop_files
from grpo_lightning.tasks import Arithmetic, Extraction, Programs
from grpo_lightning.tasks.base import Split, Task

TRAIN_ROWS, TEST_ROWS = 400, 100


@dataclass(frozen=True)
class Kind:
    """A kind of data.

    Args:
        summary: for help.
        task: the ``task`` part of the config, indented for it.
        verifier: the class that the new verifier extends.
        max_new_tokens: enough for a completion.
        longest: characters that the new verifier allows.
        has_solutions: whether the rows have worked solutions, which SFT needs.
        files: makes the data files, and what else the kind needs: their text by name.
        environment: the ``environment`` part of the config, indented for it; empty for completions of one turn.
        model: the model unless one is given.
    """

    summary: str
    task: str
    verifier: str
    max_new_tokens: int
    longest: int
    has_solutions: bool
    files: Callable[[], dict[str, str]]
    environment: str = ""
    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"


def _rows(task: Task, split: Split, row: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
    return [row(prompt) for prompt in task.prompts(split)]


def _jsonl(task: Task, row: Callable[[Any], dict[str, Any]]) -> dict[str, str]:
    """``train.jsonl`` and ``test.jsonl``."""
    lines = {split: [json.dumps(row, ensure_ascii=False) for row in _rows(task, split, row)] for split in SPLITS}
    return {f"{split}.jsonl": "".join(f"{line}\n" for line in lines[split]) for split in SPLITS}


SPLITS: tuple[Split, ...] = ("train", "test")
_SIZES: dict[str, Any] = {
    "prompt_template": "{prompt}", "train_size": TRAIN_ROWS, "val_size": 1, "test_size": TEST_ROWS
}  # fmt: skip


def _math() -> dict[str, str]:
    return _jsonl(
        Arithmetic(**_SIZES),
        lambda prompt: {
            "question": prompt.messages[-1]["content"], "answer": prompt.answer, "solution": prompt.solution
        },
    )  # fmt: skip


def _csv() -> dict[str, str]:
    texts = {}
    for split in SPLITS:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["question", "answer"])
        writer.writerows(
            [prompt.messages[-1]["content"], prompt.answer] for prompt in Arithmetic(**_SIZES).prompts(split)
        )
        texts[f"{split}.csv"] = text.getvalue()
    return texts


def _json() -> dict[str, str]:
    return _jsonl(
        Extraction(**_SIZES, shots=0, max_items=2),
        lambda prompt: {
            "text": prompt.messages[-1]["content"], "answer": prompt.answer, "schema": prompt.metadata["schema"],
            "solution": prompt.solution,
        },
    )  # fmt: skip


def _code() -> dict[str, str]:
    return _jsonl(
        Programs(**_SIZES),
        lambda prompt: {
            "description": prompt.messages[-1]["content"], **prompt.metadata, "solution": prompt.solution
        },
    )  # fmt: skip


KINDS = {
    "math": Kind(
        "word problems with a number as answer, in JSONL",
        """\
    class_path: Tabular       # rows of files; GSM8K, MBPP and others: grpo fit --data.task.help
    init_args:
      path: .                 # the folder with train.jsonl and test.jsonl
      prompt_template: "{question}\\n\\nSolve it step by step. Write the final number on a last line as #### N"
      answer_column: answer
      solution_column: solution    # worked solutions: what SFT learns, and what grpo check tries
      val_size: 50            # held out from the training rows
""",
        "MathVerifier", 96, 600, True, _math,
    ),
    "json": Kind(
        "texts to turn into JSON, with a schema",
        """\
    class_path: Tabular
    init_args:
      path: .                 # the folder with train.jsonl and test.jsonl
      prompt_template: >-
        Extract the order as one JSON object with the keys "name", "city" (null if the text names none) and "items"
        (each thing with its number). Answer with the JSON only. {text}
      answer_column: answer   # the object; the column schema says what is well-formed
      solution_column: solution
      metadata_columns: [schema]
      val_size: 50            # held out from the training rows
      shots: 1                # worked examples before each prompt
""",
        "JSONSchemaVerifier", 96, 400, True, _json,
    ),
    "code": Kind(
        "descriptions of functions, with tests",
        """\
    class_path: Tabular
    init_args:
      path: .                 # the folder with train.jsonl and test.jsonl
      prompt_template: >-
        Write a Python function f(x) that takes a number x and returns the result of these steps: {description}. Answer
        with the code of the function and nothing else.
      answer_column: null     # the tests decide
      solution_column: solution
      metadata_columns: [tests, entry_point]
      val_size: 50            # held out from the training rows
""",
        "CodeVerifier", 96, 600, True, _code,
    ),
    "csv": Kind(
        "questions and answers in CSV",
        """\
    class_path: Tabular
    init_args:
      path: .                 # the folder with train.csv and test.csv
      prompt_template: "{question}\\n\\nSolve it step by step. Write the final number on a last line as #### N"
      answer_column: answer
      gold_format: "#### {answer}"   # what a right completion ends with: grpo check tries it
      val_size: 50            # held out from the training rows
""",
        "MathVerifier", 96, 600, False, _csv,
    ),
    "gym": Kind(
        'a generated task of reasoning-gym (pip install "grpo-lightning[gym]")',
        """\
    class_path: ReasoningGym  # about a hundred generated tasks, so there is no data file
    init_args:
      name: chain_sum         # its name in reasoning-gym
      options: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 2}
      train_size: 400
      val_size: 50
      test_size: 100
      shots: 2                # worked examples before each prompt
""",
        "ReasoningGymVerifier", 48, 400, True, dict,
    ),
    "tools": Kind(
        "questions that need tools: Python functions of your own, in tools.py",
        """\
    class_path: Tabular
    init_args:
      path: .                 # the folder with train.jsonl and test.jsonl
      prompt_template: "{question}\\n\\nUse the tools. Write the final number on a last line as #### N"
      answer_column: answer
      gold_format: "#### {answer}"   # what a right last turn ends with: grpo check tries it
      val_size: 50            # held out from the training rows
""",
        "MathVerifier", 96, 600, False, shop_files,
        environment="""\
  environment:
    class_path: ToolEnvironment
    init_args:
      tools:                  # a reply that calls none of them ends the episode, and is what the verifier judges
        - tools.price         # in tools.py
        - grpo_lightning.environments.calculator
      call_reward: 0.0        # below 0, a call has a price
      max_turns: 5            # of the policy
      max_tokens: 1024        # of the conversation
""",
        model="Qwen/Qwen2.5-0.5B-Instruct",  # its chat template shows tools; that of SmolLM2-135M does not
    ),
}  # fmt: skip
"""By the name that ``--task`` takes."""
