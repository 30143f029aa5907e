"""Several tasks in one run: their shares of the steps, their verifiers, their curves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_lightning.__main__ import main
from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout import ResampleConfig, UniformDraw
from grpo_lightning.rollout.experience import Recipe
from grpo_lightning.rollout.loader import TrainLoader, parts_of
from grpo_lightning.rollout.pass_rates import PassRates
from grpo_lightning.rollout.prompts import EncodedPrompts
from grpo_lightning.tasks import Arithmetic, Extraction, Mixture, Tabular, TaskShare, check_controls
from grpo_lightning.tasks.base import MissingSplit, Split, Task
from grpo_lightning.types import Prompt, Verdict
from grpo_lightning.verifiers import ByColumn, JSONSchemaVerifier, MathVerifier, Verifier
from tests.tiny import tiny_tokenizer
from tests.toy import Watch, fit, grpo, rollouts


class Named(Task):
    """Rows that say whose they are."""

    def __init__(self, name: str, rows: int, splits: tuple[str, ...] = ("train", "val", "test")) -> None:
        super().__init__()
        self.name, self.rows, self.splits = name, rows, splits

    def prompts(self, split: Split) -> list[Prompt]:
        if split not in self.splits:
            raise MissingSplit(f"no {split}")
        return [Prompt(self.messages(f"{self.name} {split} {row}"), answer=self.name) for row in range(self.rows)]

    def gold_completion(self, prompt: Prompt) -> str:
        return str(prompt.answer)


class Always(Verifier):
    def __init__(self, correct: bool = True) -> None:
        super().__init__(accept_truncated=True)
        self.correct = correct

    def verify(self, sample: Any) -> Verdict:
        return Verdict(correct=self.correct, format_valid=True)


def loader(mixture: Mixture, per_step: int = 5, **recipe: Any) -> TrainLoader:
    prompts = EncodedPrompts(mixture.prompts("train"), tiny_tokenizer())
    return TrainLoader(prompts, per_step, Recipe(seed=3, **recipe), 0, 1, mixture.shares)


def test_steps_share_by_weight_whatever_the_numbers_of_rows() -> None:
    mixture = Mixture([TaskShare(Named("few", 5), weight=3), TaskShare(Named("many", 35), "many")])
    assert mixture.shares == {"Named": 3, "many": 1}
    batches = [loader(mixture).batch(step) for step in range(32)]
    taken = [prompt for batch in batches for prompt in batch.prompts]
    for start in range(0, 160, 40):
        # By hand: 3/4 of the 40 places of a pass.
        assert Counter(prompt.task for prompt in taken[start : start + 40]) == {"Named": 30, "many": 10}
    few = Counter(prompt.messages[0]["content"] for prompt in taken if prompt.task == "Named")
    assert set(few.values()) == {24}, "each of its rows once a pass of its own"
    many = [prompt.messages[0]["content"] for prompt in taken if prompt.task == "many"]
    assert len(set(many[:30])) == 30
    assert [prompt.task for prompt in taken[:40]] != [prompt.task for prompt in taken[40:80]]
    assert loader(mixture).batch(7).prompts == batches[7].prompts
    resampled = loader(mixture, 8, resample=ResampleConfig(4))
    for batch in map(resampled.batch, range(3)):
        for spare in batch.replacements:
            assert [prompt.task for prompt in spare.prompts] == [prompt.task for prompt in batch.prompts]


def test_a_curriculum_keeps_the_shares() -> None:
    mixture = Mixture([TaskShare(Named("few", 5), weight=3), TaskShare(Named("many", 35), "many")])
    prompts = mixture.prompts("train")
    rates, parts = PassRates(prompts), [(part.rows, part.weight) for part in parts_of(prompts, mixture.shares)]
    drawn = [prompts[row].task for seed in range(800) for row in UniformDraw().draw(rates, 1, 1, seed, parts)]
    assert drawn.count("Named") / 800 == pytest.approx(0.75, abs=0.05)


def test_splits_that_a_task_lacks_are_left_to_the_others() -> None:
    mixture = Mixture([TaskShare(Named("a", 2, ("train",)), "a"), TaskShare(Named("b", 3), "b")])
    assert [prompt.task for prompt in mixture.prompts("val")] == ["b"] * 3
    assert [prompt.metadata["task"] for prompt in mixture.prompts("train")] == ["a"] * 2 + ["b"] * 3
    with pytest.raises(MissingSplit, match="none of a has a val split"):
        Mixture([TaskShare(Named("a", 2, ("train",)), "a")]).prompts("val")
    with pytest.raises(MissingSplit, match="no train"):
        Mixture([TaskShare(Named("a", 2, ("val",)), "a"), TaskShare(Named("b", 2), "b")]).prompts("train")


def test_metadata_that_a_mixture_would_replace_is_refused() -> None:
    rows = [{"prompt": "Q", "answer": "1", "task": "algebra"}] * 2
    with pytest.raises(ConfigError, match=r"tasks: the rows of a have metadata called 'task', where .*: rename theirs"):
        Mixture([TaskShare(Tabular(rows, val_size=1, metadata_columns=["task"]), "a")]).prompts("train")
    renamed = Tabular(rows, val_size=1, metadata_columns={"kind": "task"})
    assert Mixture([TaskShare(renamed, "a")]).prompts("train")[0].metadata == {"kind": "algebra", "task": "a"}


def test_gold_and_wrong_answers_are_each_tasks_own() -> None:
    mixture = Mixture([
        TaskShare(Arithmetic(train_size=4, val_size=2, test_size=2), "math"),
        TaskShare(Extraction(train_size=4, val_size=2, test_size=2), "json"),
    ])  # fmt: skip
    by_task = ByColumn("task", {"math": MathVerifier(), "json": JSONSchemaVerifier()})
    assert list(check_controls(mixture, [by_task])) == []
    swapped = ByColumn("task", {"json": MathVerifier(), "math": JSONSchemaVerifier()})
    assert len({failure.row for failure in check_controls(mixture, [swapped], ["train"])}) == 8


def test_each_task_has_its_validation_curve(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    tasks = Mixture(
        [TaskShare(Named("a", 4), "a"), TaskShare(Named("b", 2), "b"), TaskShare(Named("c", 2, ("train",)))]
    )
    verifier = ByColumn("task", {"a": Always(), "b": Always(False), "Named": Always()})
    watch = Watch()
    module, data = grpo(tiny_model("llama"), verifiers=[verifier]), rollouts(task=tasks, group_size=2)
    fit(tmp_path, module, 1, data, callbacks=[watch], limit_val_batches=1.0, val_check_interval=1)
    logged = module.trainer.callback_metrics
    assert (logged["val/a/accuracy"], logged["val/b/accuracy"]) == (1, 0)
    assert float(logged["val/accuracy"]) == pytest.approx(4 / 6)
    assert "val/Named/accuracy" not in logged


def test_a_mixture_is_configured_in_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def sizes(**more: Any) -> dict[str, Any]:
        return {"train_size": 4, "val_size": 2, "test_size": 2, **more}

    tasks = [
        {"name": "math", "weight": 2, "task": {"class_path": "Arithmetic", "init_args": sizes(system_prompt="Count.")}},
        {"name": "json", "task": {"class_path": "Extraction", "init_args": sizes()}},
    ]
    verifiers = {"math": {"class_path": "MathVerifier"}, "json": {"class_path": "JSONSchemaVerifier"}}
    by_task = {"class_path": "ByColumn", "init_args": {"column": "task", "verifiers": verifiers}}
    config = {
        "model": {
            "class_path": "GRPOModule",
            "init_args": {"policy": {"path": str(Path("configs/tiny_decoder").absolute())}, "verifiers": by_task},
        },
        "data": {"task": {"class_path": "Mixture", "init_args": {"tasks": tasks}}},
    }
    file = tmp_path / "mixture.yaml"
    file.write_text(yaml.safe_dump(config))
    main(["check", "--config", str(file)])
    assert "Mixture: every gold answer that was checked is correct to ByColumn" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shares", "text"),
    [
        ([], r"data\.task\.init_args\.tasks: give at least one task"),
        ([TaskShare(Named("a", 1)), TaskShare(Named("b", 1))], "two tasks are called 'Named'"),
        ([TaskShare(Named("a", 1), "a/b")], "'a/b' cannot be a name"),
        ([TaskShare(Named("a", 1), "reward")], "'reward' cannot be a name"),
        ([TaskShare(Named("a", 1), weight=0)], "the weight of Named must be above 0, not 0"),
        ([TaskShare(Named("a", 1), weight=math.inf)], "the weight of Named must be above 0, not inf"),
        ([TaskShare(Mixture([TaskShare(Named("a", 1))]))], "Mixture is a Mixture itself"),
        ([TaskShare(Arithmetic(chat_template="plain")), TaskShare(Extraction(chat_template="x"))], "different ones"),
    ],
)
def test_bad_options_name_their_key(shares: list[TaskShare], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Mixture(shares)


def test_a_task_without_prompts_that_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no training prompt of b fits data\.max_prompt_tokens"):
        parts_of([Prompt([], task="a")], {"a": 1.0, "b": 1.0})
