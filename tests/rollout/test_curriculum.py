"""Curricula: pass rates over a run, what is drawn by them, and that a resumed run draws the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_lightning.algorithms import SFTModule
from grpo_lightning.callbacks import RunCheckpoint
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import PolicyConfig
from grpo_lightning.rollout import Curriculum, EasyToHard, Informative, ResampleConfig, UniformDraw
from grpo_lightning.rollout.curriculum import named_curriculum
from grpo_lightning.rollout.pass_rates import FILE, PassRates, count, prompt_id
from grpo_lightning.rollout.records import record
from grpo_lightning.types import Prompt
from tests.rollout.test_resampling import Strict, attempt, completions
from tests.toy import CopyEngine, LetterVerifier, ToyTask, Watch, fit, grpo, rollouts, same


def prompts(rows: int) -> list[Prompt]:
    return [Prompt([{"role": "user", "content": str(row)}], answer=row) for row in range(rows)]


def rates_of(passes: list[int | None], step: int = 0, attempts: int = 8) -> PassRates:
    """Rates of as many rows; ``None`` for one that has not been visited."""
    rows = prompts(len(passes))
    rates = PassRates(rows)
    visits = {prompt_id(row): (n, attempts) for row, n in zip(rows, passes, strict=True) if n is not None}
    rates.see(visits, step)
    return rates


def drawn(curriculum: Curriculum, rates: PassRates, step: int = 1, draws: int = 2000, size: int = 1) -> list[float]:
    """The share of the draws that each row is in."""
    seen = Counter(row for seed in range(draws) for row in curriculum.draw(rates, step, size, seed))
    return [seen[row] / draws for row in range(len(rates.passes_N))]


def test_visits_are_counted_by_prompt_and_the_last_one_holds(tmp_path: Path) -> None:
    rows = prompts(3)
    made = [replace(attempt(reward), prompt=rows[2]) for reward in (1.0, 0.0, float("nan"))]
    counts = count([*made, *(replace(attempt(1.0), prompt=rows[1]) for _ in range(2))])
    assert counts == {prompt_id(rows[2]): (1, 2), prompt_id(rows[1]): (2, 2)}, "where a verifier broke, none was made"
    rates = PassRates([*rows, rows[1]])
    rates.see(counts, 4)
    rates.see({prompt_id(rows[1]): (1, 4)}, 7)
    assert rates.passes_N.tolist() == [0, 1, 1, 1]
    assert rates.attempts_N.tolist() == [0, 4, 2, 4]
    assert rates.step_N.tolist() == [0, 7, 4, 7]
    rates.write(tmp_path / FILE)
    line, _ = (tmp_path / FILE).read_text().splitlines()
    assert json.loads(line) == {
        "id": f"{prompt_id(rows[1]):016x}", "passes": 1, "attempts": 4, "pass_rate": 0.25, "step": 7, "prompt": "1",
    }  # fmt: skip
    # Of another task, in another order: by the prompt.
    other = PassRates(list(reversed(rows)))
    other.load(rates.state())
    assert other.passes_N.tolist() == [1, 1, 0]
    read = PassRates(rows)
    read.read(str(tmp_path / FILE))
    assert (read.attempts_N.tolist(), read.step_N.tolist()) == ([0, 4, 2], [0, 0, 0])


def test_a_prompt_may_hold_what_other_places_take_for_the_end_of_a_line(tmp_path: Path) -> None:
    rows = [Prompt([{"role": "user", "content": f"a{mark}b"}], "1") for mark in "\u2028\u0085\x1c"]
    rates = PassRates(rows)
    rates.see({prompt_id(row): (1, 4) for row in rows}, 1)
    rates.write(tmp_path / FILE)
    read = PassRates(rows, str(tmp_path / FILE))
    assert read.attempts_N.tolist() == [4, 4, 4]


def test_messages_may_hold_what_json_has_no_type_for() -> None:
    """A parquet file has dates, and a tool call may hold one."""
    message = {"role": "assistant", "content": ""}
    prompt = Prompt([message | {"tool_calls": [{"on": date(2024, 5, 1)}]}])
    assert prompt_id(prompt) != prompt_id(Prompt([message]))
    stored = json.loads(json.dumps(record(replace(attempt(1.0), prompt=prompt))))
    assert stored["prompt"] == [message | {"tool_calls": [{"on": "2024-05-01"}]}]


def test_weights_are_those_of_the_formulas() -> None:
    rate_N = torch.tensor([0.9, 0.5, 0.1, 0.5])
    assert Informative().weights(rate_N, 0).tolist() == pytest.approx([0.09, 0.25, 0.09, 0.25])
    assert UniformDraw().weights(rate_N, 0).tolist() == [1, 1, 1, 1]
    # By hand: sqrt(0.25^2 + 0.5 (1 - 0.25^2)) = 0.729, three of four; the tie is admitted at once.
    curriculum = EasyToHard(start=0.25, steps=10)
    assert curriculum.weights(rate_N, 0).tolist() == [1, 0, 0, 0]
    assert curriculum.weights(rate_N, 1).tolist() == [1, 1, 0, 1]
    assert curriculum.weights(rate_N, 5).tolist() == [1, 1, 0, 1]
    assert curriculum.weights(rate_N, 10).tolist() == [1, 1, 1, 1]
    assert curriculum.weights(torch.full((5,), 0.5), 0).tolist() == [1] * 5


def test_draws_follow_the_weights_without_repetition() -> None:
    # (p + 1) / (n + 2): 0.5, 0.1 and 0.9 have the variances 0.25, 0.09 and 0.09; nothing is known of the last.
    rates = rates_of([4, 0, 8, None])
    shares = drawn(Informative(solved=None, hopeless=None), rates)
    assert shares == pytest.approx([0.25 / 0.68, 0.09 / 0.68, 0.09 / 0.68, 0.25 / 0.68], abs=0.03)
    assert drawn(UniformDraw(solved=None, hopeless=None), rates) == pytest.approx([0.25] * 4, abs=0.03)
    rows = UniformDraw().draw(rates_of([4] * 9), 3, 9, 0)
    assert sorted(rows) == list(range(9))
    assert rows != UniformDraw().draw(rates_of([4] * 9), 4, 9, 0)
    assert rows != UniformDraw().draw(rates_of([4] * 9), 3, 9, 1)
    assert rows == UniformDraw().draw(rates_of([4] * 9), 3, 9, 0)


def test_solved_and_hopeless_prompts_are_excluded_and_return() -> None:
    rates = rates_of([8, 0, 4, 7, 1], step=10)
    assert drawn(UniformDraw(return_after=5), rates, step=14, draws=60)[:2] == [0, 0]
    assert min(drawn(UniformDraw(return_after=5), rates, step=15, draws=300)) > 0
    assert drawn(UniformDraw(solved=0.8, hopeless=0.2), rates, step=14, draws=60) == [0, 0, 1, 0, 0]
    assert min(drawn(UniformDraw(solved=None), rates, step=14, draws=60)[::2]) > 0
    assert min(drawn(UniformDraw(hopeless=None), rates, step=14, draws=60)[1:3]) > 0
    # Too few are left: the one that has been out longest returns first.
    rates = rates_of([8, 0, 4], step=10)
    rates.see({prompt_id(prompts(3)[1]): (0, 8)}, 9)
    assert UniformDraw().draw(rates, 12, 3, 0) == [2, 1, 0]


def test_the_easiest_of_those_left_are_drawn_and_not_the_first_ones() -> None:
    """Solved prompts are the easiest of all: they must not take the place of those that can be learned from."""
    hopeless, halves, solved = range(40), range(40, 70), range(70, 100)
    rates = rates_of([0] * 40 + [4] * 30 + [8] * 30)
    for step in range(4):
        first, second = (EasyToHard().draw(rates, step, 8, seed) for seed in (1, 2))
        assert {*first, *second} <= {*halves}
        assert first != second
    # 30 rows can be drawn. What fills a step up was excluded, and is not the same for all seeds.
    rows = EasyToHard().draw(rates, 1, 60, 1)
    assert {*rows[:30]} == {*halves}
    assert {*rows[30:]} <= {*hopeless, *solved}
    assert rows[30:] != EasyToHard().draw(rates, 1, 60, 2)[30:]
    # Those that are not admitted yet come last.
    harder = EasyToHard(solved=None, hopeless=None).draw(rates, 0, 100, 1)
    assert {*harder[:30]} == {*solved}


def run(path: str, folder: Path, steps: int, watch: Watch, **options: Any) -> dict[str, torch.Tensor]:
    more = {name: options.pop(name) for name in ("curriculum", "engine", "rollouts_ahead") if name in options}
    data = rollouts(**{"curriculum": "informative", "group_size": 2, "task": ToyTask(rows=12)} | more)
    callbacks = [watch, *([RunCheckpoint(monitor=None)] if options.get("enable_checkpointing") else [])]
    return fit(folder, grpo(path, verifiers=[Strict()]), steps, data, callbacks=callbacks, **options)


@pytest.mark.parametrize("ahead", [False, True], ids=["in process", "one step ahead"])
def test_a_resumed_run_repeats_the_uninterrupted_one(
    tiny_model: Callable[[str], str], tmp_path: Path, ahead: bool
) -> None:
    def more() -> dict[str, Any]:
        return {"engine": CopyEngine(), "rollouts_ahead": 1} if ahead else {}

    path, whole, resumed = tiny_model("llama"), Watch(), Watch()
    expected = run(path, tmp_path, 5, whole, **more())
    run(path, tmp_path, 3, Watch(), enable_checkpointing=True, **more())
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    state = torch.load(checkpoint, weights_only=True)["RolloutDataModule"]["pass_rates"]
    visited = {prompt_id(a.prompt) for batch in whole.batches[:3] for a in batch.attempts}
    assert set(state["id"].tolist()) == visited
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert {int(line["id"], 16) for line in lines} == visited
    assert same(expected, run(path, tmp_path, 5, resumed, ckpt_path=checkpoint, **more()))
    assert [completions(batch) for batch in resumed.batches] == [completions(batch) for batch in whole.batches[3:]]
    plain = Watch()
    run(path, tmp_path, 5, plain, curriculum=None)
    assert [completions(batch) for batch in plain.batches] != [completions(batch) for batch in whole.batches]


def test_hopeless_prompts_are_not_drawn_again_and_replacements_follow_the_curriculum(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    watch = Watch()
    data = rollouts(curriculum="uniform", group_size=2, task=ToyTask(rows=24), resample_silent=ResampleConfig(1))
    fit(tmp_path, grpo(tiny_model("llama"), verifiers=[Strict()]), 3, data, callbacks=[watch])
    out: set[int] = set()
    for batch in watch.batches:
        groups = {attempt.group: attempt for attempt in batch.sampled}
        ids = [prompt_id(attempt.prompt) for attempt in groups.values()]
        assert not out & set(ids)
        out |= {prompt for prompt, (passes, made) in count(batch.sampled).items() if passes in (0, made)}
    assert out


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Informative(solved=1.5), r"data\.curriculum\.solved: must be from 0 to 1"),
        (lambda: Informative(solved=0.2, hopeless=0.2), r"data\.curriculum\.solved: must be above hopeless \(0\.2\)"),
        (lambda: Informative(return_after=0), r"data\.curriculum\.return_after: must be at least 1"),
        (lambda: EasyToHard(start=0), r"data\.curriculum\.start: must be above 0"),
        (lambda: EasyToHard(steps=0), r"data\.curriculum\.steps: must be at least 1"),
        (lambda: named_curriculum("hard"), r"data\.curriculum: must be one of uniform, informative, easy_to_hard"),
    ],
)
def test_bad_options_name_their_key(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()


def test_a_module_that_samples_nothing_to_learn_from_is_refused(
    tiny_model: Callable[[str], str], tmp_path: Path
) -> None:
    module = SFTModule(policy=PolicyConfig(path=tiny_model("llama")), verifiers=[LetterVerifier()])
    with pytest.raises(ConfigError, match=r"data\.curriculum: SFTModule samples nothing to learn from.*: remove it"):
        fit(tmp_path, module, 1, rollouts(curriculum="informative"))


def test_files_that_are_no_pass_rates_are_refused(tmp_path: Path) -> None:
    rates, file = PassRates(prompts(2)), tmp_path / "rates.jsonl"
    with pytest.raises(ConfigError, match=r"cannot read .*FileNotFoundError"):
        rates.read(str(file))
    file.write_text('{"passes": 1}\n')
    with pytest.raises(ConfigError, match=r"data\.curriculum\.init_args\.pass_rates: cannot read"):
        rates.read(str(file))
    other = PassRates(prompts(9)[5:])
    other.see({prompt_id(prompts(9)[6]): (1, 2)}, 0)
    other.write(file)
    with pytest.raises(ConfigError, match=r"none of the 1 prompts of .* is a row of the train split"):
        rates.read(str(file))
