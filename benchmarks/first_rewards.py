"""What a model earns before any training, for each shipped task: one line per task and temperature.

    python benchmarks/first_rewards.py --model HuggingFaceTB/SmolLM2-135M-Instruct --gsm8k openai/gsm8k
    python benchmarks/first_rewards.py --model FOLDER --tasks Arithmetic --chat_template "{{ ... }}" --stop "\\n\\n"

Greedily one completion for each of the first test rows; at the other temperatures, for as many completions, groups of
``--group_size`` for the first of these rows. A task without its data (``--gsm8k``, ``--mbpp``, ``--humaneval``: a hub
name or a folder) is omitted. ``valid``: the format that the verifier wants; ``ended``: before the limit of tokens;
``signal``: groups whose rewards differ.

``--gym`` measures data sets of reasoning-gym instead, each by itself and with its default difficulty; ``all`` is all of
them. Their limit is half again of the longest gold answer, from 24 to 160 tokens::

    python benchmarks/first_rewards.py --model FOLDER --gym all --shots 2 --temperatures 1.0 --group_size 8
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from meters import machine
from transformers import AutoTokenizer

from grpo_lightning.algorithms import GRPOModule
from grpo_lightning.models import PolicyConfig
from grpo_lightning.models.tokenizer import encode_prompt
from grpo_lightning.rollout import Experience, RolloutDataModule, SamplingParams
from grpo_lightning.rollout.experience import EvaluationBatch, Recipe
from grpo_lightning.rollout.prompts import PromptBatch
from grpo_lightning.tasks import GSM8K, MBPP, Arithmetic, Extraction, HumanEval, Programs, ReasoningGym, Task
from grpo_lightning.verifiers import CodeVerifier, JSONSchemaVerifier, MathVerifier, ReasoningGymVerifier, Verifier

# What the shipped configs have: the verifier, and the limit of tokens that long answers need.
JUDGES: Mapping[type[Task], tuple[Callable[[], Verifier], int]] = {
    Arithmetic: (MathVerifier, 128),
    Extraction: (lambda: JSONSchemaVerifier(document="whole"), 64),
    Programs: (lambda: CodeVerifier(reward_format=0.1), 96),
    GSM8K: (MathVerifier, 256),
    MBPP: (lambda: CodeVerifier(reward_format=0.1), 256),
    HumanEval: (lambda: CodeVerifier(reward_format=0.1), 256),
    ReasoningGym: (ReasoningGymVerifier, 160),
}


class Sampler(pl.Callback):
    """Keeps the completions of the first test batch, and samples groups for its first prompts.

    Args:
        data: samples them.
        temperatures: sampling temperatures of the groups.
        group_size: completions per group.
    """

    def __init__(self, data: RolloutDataModule, temperatures: Sequence[float], group_size: int) -> None:
        self.data, self.temperatures, self.group_size = data, temperatures, group_size
        self.found: dict[float, Experience] = {}

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: EvaluationBatch, *_: Any
    ) -> None:
        assert isinstance(pl_module, GRPOModule)
        self.found[0.0] = batch.single
        rows = [attempt.prompt for attempt in batch.single.attempts][:: self.group_size]
        ids = [encode_prompt(pl_module.policy.tokenizer, row.messages) for row in rows]
        for temperature in self.temperatures:
            sampling = replace(self.data.sampling, temperature=temperature)
            keys = [f"first/{temperature}/{number}" for number in range(len(rows))]
            recipe = Recipe("train", self.group_size, sampling)
            self.found[temperature] = self.data.collect(PromptBatch(rows, ids, keys, recipe))


def line(name: str, temperature: float, experience: Experience) -> str:
    """Return the line of the table for one task and temperature."""
    attempts, size = experience.attempts, experience.recipe.group_size
    counts = [
        sum(attempt.verdict.format_valid for attempt in attempts),
        sum(attempt.verdict.correct for attempt in attempts),
        sum(not attempt.is_truncated for attempt in attempts),
    ]
    shares = [f"{count / len(attempts):.0%}" for count in counts]
    groups = [attempts[start : start + size] for start in range(0, len(attempts), size)]
    signal = sum(len({attempt.reward for attempt in group}) > 1 for group in groups)
    reward = sum(attempt.reward for attempt in attempts) / len(attempts)
    cells = [name, f"{temperature:g}", str(len(attempts)), *shares, f"{reward:.2f}"]
    return "| " + " | ".join([*cells, f"{signal} of {len(groups)}" if size > 1 else ""]) + " |"


def limit(model: str, task: Task) -> int:
    """Return the number of tokens that the longest right answer takes, with some room."""
    cap = JUDGES[type(task)][1]
    answers = [row.solution for row in task.prompts("test") if row.solution is not None]
    if not isinstance(task, ReasoningGym) or not answers:
        return cap
    tokenizer = AutoTokenizer.from_pretrained(model)
    longest = max(len(tokenizer.encode(answer, add_special_tokens=False)) for answer in answers)
    return min(cap, max(24, longest * 3 // 2))


def measure(args: argparse.Namespace, task: Task, module: GRPOModule) -> dict[float, Experience]:
    """Return the completions for one task, by temperature."""
    sampling = SamplingParams(max_new_tokens=args.cap or limit(args.model, task), stop=args.stop or None)
    data = RolloutDataModule(
        task, sampling=sampling, val_batch_size=args.rows, max_prompt_tokens=args.max_prompt_tokens,
        rollout_rows_at_once=args.rows_at_once,
    )  # fmt: skip
    sampler = Sampler(data, args.temperatures, args.group_size)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu" if args.device == "cpu" else "auto", limit_test_batches=1, logger=False, max_steps=1,
            callbacks=[sampler], enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        pl.seed_everything(args.seed, verbose=False)
        trainer.test(module, datamodule=data, verbose=False)
    return sampler.found


def gym_names() -> list[str]:
    import reasoning_gym  # noqa: F401 - registers the data sets
    from reasoning_gym.factory import DATASETS

    return sorted(set(DATASETS) - {"composite"})


def tasks(args: argparse.Namespace) -> dict[str, Task]:
    """Return the tasks to measure, by name."""
    common = {"chat_template": args.chat_template, "shots": args.shots}
    given: dict[str, Any] = {key: value for key, value in common.items() if value is not None}
    if args.gym:
        names = gym_names() if args.gym == ["all"] else args.gym
        sizes = {"train_size": 1, "val_size": 1, "test_size": args.rows}
        return {name: ReasoningGym(name, **sizes, **given) for name in names}
    made: dict[str, Task] = {}
    for kind in JUDGES:
        name, options = kind.__name__, dict(given)
        if kind is ReasoningGym or (args.tasks and name not in args.tasks):
            continue
        if kind in (GSM8K, MBPP, HumanEval):
            options["path"] = getattr(args, name.lower())
            if options["path"] is None:
                continue
            if kind is HumanEval:
                options.pop("shots", None)  # it has no rows to train on, and so none to show
        made[name] = kind(**options)
    return made


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="hub name or folder")
    parser.add_argument("--tasks", nargs="+", choices=[kind.__name__ for kind in JUDGES], help="default: all")
    parser.add_argument("--gym", nargs="+", help="data sets of reasoning-gym instead of tasks, or all")
    parser.add_argument("--gsm8k", help="hub name or folder of the data")
    parser.add_argument("--mbpp", help="hub name or folder of the data")
    parser.add_argument("--humaneval", help="hub name or folder of the data")
    parser.add_argument("--rows", type=int, default=64, help="completions per line of the table")
    parser.add_argument("--group_size", type=int, default=4, help="completions per prompt, above temperature 0")
    parser.add_argument("--temperatures", nargs="*", type=float, default=[0.6, 1.0], help="besides 0")
    parser.add_argument("--cap", type=int, help="limit of tokens per completion; default: by task")
    parser.add_argument("--max_prompt_tokens", type=int, default=1024, help="rows with longer prompts are dropped")
    parser.add_argument("--rows_at_once", type=int, help="limits the memory; does not change the result")
    parser.add_argument("--shots", type=int, help="worked examples before every prompt; default: the task's own")
    parser.add_argument("--chat_template", help="for a model without one")
    parser.add_argument("--stop", nargs="+", help="strings that end a completion")
    parser.add_argument("--dtype", default="float32", help="of the weights")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(f"`{shlex.join(['python', *sys.argv])}`\n\n{machine(torch.device(args.device))}\n")
    print("| task | temperature | completions | valid | correct | ended | reward | groups with signal |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    modules: dict[type[Task], GRPOModule] = {}
    for name, task in tasks(args).items():
        if (kind := type(task)) not in modules:
            policy = PolicyConfig(path=args.model, dtype=args.dtype)
            modules[kind] = GRPOModule(policy=policy, verifiers=[JUDGES[kind][0]()], beta=0.0)
        for temperature, experience in sorted(measure(args, task, modules[kind]).items()):
            print(line(name, temperature, experience), flush=True)


if __name__ == "__main__":
    main()
