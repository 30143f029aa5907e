"""Model families as they are published: what is rendered, where completions end, and that they train."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from grpo_lightning.algorithms import GRPOModule
from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig
from grpo_lightning.models.tokenizer import encode_prompt, load_tokenizer
from grpo_lightning.models.weightless import weightless
from grpo_lightning.rollout.refinement import next_turn
from grpo_lightning.speed.caches import EarlyJoins
from grpo_lightning.speed.direct import DirectDecoding
from grpo_lightning.speed.shared_prompt import SharedPrompts
from grpo_lightning.types import Attempt, Completion, FinishReason, Prompt, Verdict
from tests.models.family_folders import (
    FAMILIES,
    MODELS,
    facts_of,
    family_tokenizer,
    published,
    save_family,
    save_published_config,
)
from tests.toy import LetterVerifier, ToyTask, Watch, adam, fit, rollouts

PAGE = (Path(__file__).parents[2] / "docs/models.md").read_text()
ROWS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| ")]
TABLE = {row[0]: row[1:6] for row in ROWS if len(row) == 7}
ROLES = {"S": "system", "U": "user"}


def tokenizer_of(name: str, folder: Path, kwargs: dict[str, Any] | None = None) -> Any:
    """The family's tokenizer as the loading path gives it."""
    facts = facts_of(name)
    family_tokenizer(name).save_pretrained(folder)
    kwargs = facts.get("chat_template_kwargs") if kwargs is None else kwargs
    return load_tokenizer(str(folder), chat_template=facts.get("task_template"), chat_template_kwargs=kwargs)


def test_the_page_has_all_families() -> None:
    assert set(TABLE) - {"family"} == {facts_of(name)["family"] for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_look_as_published(name: str, tmp_path: Path) -> None:
    for prompt in facts_of(name)["prompts"]:
        tokenizer = tokenizer_of(name, tmp_path, prompt.get("kwargs"))
        chat = [{"role": ROLES[text], "content": text} for text in prompt["chat"]]
        before = datetime.now()
        ids = encode_prompt(tokenizer, chat)
        # A prompt may hold today's date, and the day may end in between.
        assert tokenizer.decode(ids) in {day.strftime(prompt["text"]) for day in (before, datetime.now())}
        special = facts_of(name)["tokens"]["special"]
        assert any(id < len(special) for id in ids), "special tokens are encoded as such"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_further_attempt_continues_the_chat(name: str, tmp_path: Path) -> None:
    tokenizer, facts = tokenizer_of(name, tmp_path), facts_of(name)
    conversation = encode_prompt(tokenizer, [{"role": "user", "content": "U"}])
    said = tokenizer.encode("no", add_special_tokens=False)
    ends = tokenizer.convert_tokens_to_ids(facts["terminators"])
    attempt = Attempt(
        Prompt([]), conversation, completion=Completion([*said, ends[0]], "no", FinishReason.STOP, [], []),
        verdict=Verdict(False, True, feedback="F"), reward=0.0,
    )  # fmt: skip
    turn = next_turn(tokenizer, attempt, "{feedback}", ends)
    assert turn[: len(conversation) + len(said)] == conversation + said
    assert tokenizer.decode(turn[len(conversation) + len(said) :]) == facts["next_turn"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tiny_model_of_the_family_trains(name: str, tmp_path: Path) -> None:
    facts = facts_of(name)
    policy = PolicyConfig(
        path=save_family(tmp_path, name), lora=LoRAConfig(r=4, alpha=8),
        chat_template_kwargs=facts.get("chat_template_kwargs") or {},
    )  # fmt: skip
    module = GRPOModule(policy=policy, verifiers=[LetterVerifier()], beta=0.0, optimizer=adam)
    task = ToyTask(rows=4, chat_template=facts.get("task_template"))
    task.system_prompt = "Be brief."
    watch = Watch()
    fit(tmp_path, module, 2, rollouts(task=task, prompts_per_step=2), callbacks=[watch])
    tokenizer, logged = module.policy.tokenizer, watch.logged
    assert module.policy.terminators == tokenizer.convert_tokens_to_ids(facts["terminators"])
    gaps = [step["policy/sampler_gap"] for step in logged if "policy/sampler_gap" in step]
    assert gaps
    assert max(gaps) < 1e-5
    assert max(step["optim/grad_norm"] for step in logged) > 0
    attempts = [attempt for experience in watch.batches for attempt in experience.attempts]
    ended = [attempt.completion.token_ids for attempt in attempts if not attempt.is_truncated]
    assert ended
    assert all(ids[-1] in module.policy.terminators for ids in ended)
    assert all("Be brief." in tokenizer.decode(attempt.conversation) for attempt in attempts)
    uses = [module.policy.shortcuts.uses(shortcut) for shortcut in (DirectDecoding, SharedPrompts, EarlyJoins)]
    assert TABLE[facts["family"]] == [facts["model"], "yes", *("yes" if used else "no" for used in uses)]


@pytest.mark.parametrize("model", MODELS)
def test_the_published_sizes_load_without_weights(model: str, tmp_path: Path) -> None:
    """As ``grpo plan`` loads them."""
    with weightless():
        policy = Policy(PolicyConfig(path=save_published_config(tmp_path, model)))
    assert policy.lm.num_parameters() == published(MODELS[model])[model]["parameters"]
