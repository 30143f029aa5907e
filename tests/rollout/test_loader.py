"""Which prompts a step gets: the same on any number of ranks, after any resume; and what happens to long ones."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_lightning.errors import ConfigError
from grpo_lightning.models.tokenizer import encode_prompt, load_tokenizer
from grpo_lightning.rollout.experience import Recipe
from grpo_lightning.rollout.loader import EvalLoader, TrainLoader
from grpo_lightning.rollout.prompts import EncodedPrompts
from grpo_lightning.tasks.base import Split, Task
from grpo_lightning.types import Prompt
from tests.tiny import tiny_tokenizer
from tests.toy import ToyTask, fit, grpo, rollouts

TOKENIZER = tiny_tokenizer()


def encoded(rows: int) -> EncodedPrompts:
    return EncodedPrompts(
        [Prompt([{"role": "user", "content": str(row)}], answer=row) for row in range(rows)], TOKENIZER
    )


def passes(loader: TrainLoader, steps: int) -> list[tuple[list[str], list[int]]]:
    """What a trainer takes from the loader: an iteration a pass, a step done after each batch."""
    taken: list[tuple[list[str], list[int]]] = []
    while len(taken) < steps:
        for batch in loader:
            assert batch.recipe.step == loader.step
            taken.append((batch.keys, [prompt.answer for prompt in batch.prompts]))
            loader.step += 1
    return taken[:steps]


@given(rows=st.integers(1, 12), per_step=st.integers(1, 7), ranks=st.integers(1, 3), cut=st.integers(0, 9))
def test_steps_are_the_same_on_any_ranks_and_after_any_resume(rows: int, per_step: int, ranks: int, cut: int) -> None:
    prompts = encoded(rows)
    whole = passes(TrainLoader(prompts, per_step, recipe=Recipe(seed=3), rank=0, ranks=1), 10)
    shares = []
    for rank in range(ranks):
        loader = TrainLoader(prompts, per_step, recipe=Recipe(seed=3), rank=rank, ranks=ranks)
        before = passes(loader, cut)
        resumed = TrainLoader(prompts, per_step, recipe=Recipe(seed=3), rank=rank, ranks=ranks)
        loader.step = cut
        resumed.load_state_dict(loader.state_dict())
        shares.append(before + passes(resumed, 10 - cut))
    for step, (keys, answers) in enumerate(whole):
        together = [pair for share in shares for pair in zip(*share[step], strict=True)]
        assert sorted(together) == sorted(zip(keys, answers, strict=True))
        assert len(answers) == per_step


def test_every_pass_names_every_row_once_in_an_order_of_its_own() -> None:
    answers = [
        a for _, step in passes(TrainLoader(encoded(10), 4, recipe=Recipe(seed=0), rank=0, ranks=1), 10) for a in step
    ]
    assert all(set(answers[start : start + 10]) == set(range(10)) for start in (0, 10, 20, 30))
    assert answers[:10] != answers[10:20]
    other = [
        a for _, step in passes(TrainLoader(encoded(10), 4, recipe=Recipe(seed=1), rank=0, ranks=1), 3) for a in step
    ]
    assert other != answers[:12]


@given(rows=st.integers(1, 20), size=st.integers(1, 6), ranks=st.integers(1, 3))
def test_evaluation_takes_every_row_exactly_once(rows: int, size: int, ranks: int) -> None:
    seen: Counter[int] = Counter()
    for rank in range(ranks):
        loader = EvalLoader(encoded(rows), "val", Recipe("val"), size, rank, ranks)
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(len(batch.prompts) <= size for batch in batches)
        seen.update(prompt.answer for batch in batches for prompt in batch.prompts)
    assert seen == Counter(range(rows))


class LongTask(Task):
    def prompts(self, split: Split) -> list[Prompt]:
        return [Prompt(self.messages("x" * length), answer="e") for length in (5, 40, 10)]

    def gold_completion(self, prompt: Prompt) -> str:
        return "e"


def test_overlong_prompts_are_dropped_with_a_count_or_truncated_on_the_left(
    tiny_model: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = load_tokenizer(tiny_model("llama"))
    lengths = [len(encode_prompt(tokenizer, prompt.messages)) for prompt in LongTask().prompts("train")]
    limit = max(length for length in lengths if length < max(lengths))
    prompts = LongTask().prompts("train")
    assert [len(ids) for _, ids in EncodedPrompts(prompts, tokenizer, limit).rows] == [lengths[0], lengths[2]]
    cut = EncodedPrompts(prompts, tokenizer, limit, "truncate-left")
    assert [len(ids) for _, ids in cut.rows] == [lengths[0], limit, lengths[2]]
    assert cut.rows[1][1] == encode_prompt(tokenizer, prompts[1].messages)[-limit:]
    with caplog.at_level(logging.WARNING, "grpo_lightning"):
        fit(tmp_path, grpo(tiny_model("llama")), 1, rollouts(task=LongTask(), max_prompt_tokens=limit))
    assert f"1 of 3 train prompts are longer than max_prompt_tokens={limit} and were dropped" in caplog.text
    with pytest.raises(ConfigError, match=r"data.max_prompt_tokens: all 3 prompts are longer than 4 tokens"):
        EncodedPrompts(prompts, tokenizer, 4)


def test_an_empty_split_is_refused(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.task: the train split of ToyTask has no rows"):
        fit(tmp_path, grpo(tiny_model("llama")), 1, rollouts(task=ToyTask(rows=0)))


def test_the_tasks_chat_template_is_what_prompts_are_rendered_with(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    template = "Q: {{ messages[0].content }} A:"
    module = grpo(tiny_model("llama"))
    fit(tmp_path, module, 1, data := rollouts(task=ToyTask(chat_template=template)))
    batch = data.sample_prompts(3)
    assert all(module.policy.tokenizer.decode(ids).startswith("Q: train") for ids in batch.prompt_ids)
    assert module.policy.tokenizer.chat_template.endswith(template), "so that the exported folder has it"
