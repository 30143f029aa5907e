"""Runs with a constraint: the policy that learns is the distribution that was sampled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("llguidance", reason="llguidance is an extra: pip install -e '.[constraint]'")

from grpo_lightning.algorithms import GRPOModule, PPOModule, ScheduledEntropy
from grpo_lightning.constraints import RowSchema
from grpo_lightning.models import Policy, PolicyConfig
from grpo_lightning.rollout import Experience, RefinementConfig, SamplingParams
from grpo_lightning.tasks import Task
from grpo_lightning.tasks.base import Split
from grpo_lightning.types import Prompt
from grpo_lightning.verifiers import JSONSchemaVerifier
from tests.toy import Watch, adam, fit, llama_alone, rollouts, sgd


class EvenNumbers(Task):
    """Rows with a schema each; a correct document has an even number."""

    def prompts(self, split: Split) -> Sequence[Prompt]:
        return [
            Prompt(self.messages(f"{split} {row}"), answer={"n": 2, "b": name}, metadata={"schema": schema(name)})
            for row, name in enumerate(["x", "yes", "no", "x"] * 2)
        ]

    def gold_completion(self, prompt: Prompt) -> str:
        return f'{{"n": 2, "b": "{prompt.answer["b"]}"}}'


def schema(name: str) -> dict[str, Any]:
    properties = {"n": {"type": "integer", "minimum": 0, "maximum": 9}, "b": {"enum": [name, "z"]}}
    return {"type": "object", "properties": properties, "required": ["n", "b"], "additionalProperties": False}


def still(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


CONSTRAINED = SamplingParams(temperature=0.8, max_new_tokens=20, constraint=RowSchema(max_whitespace=0))


def data_of(**options: Any) -> Any:
    options = {"task": EvenNumbers(), "prompts_per_step": 4, "group_size": 4, "sampling": CONSTRAINED} | options
    return rollouts(**options)


def valid_unless_truncated(experience: Experience) -> bool:
    return all(attempt.verdict.format_valid or attempt.is_truncated for attempt in experience.attempts)


def test_the_first_ratio_is_1_and_every_document_is_valid(model_path: str, tmp_path: Path) -> None:
    watch = Watch()
    module = GRPOModule(
        policy=PolicyConfig(path=model_path), verifiers=[JSONSchemaVerifier()], beta=0.1, optimizer=still,
        updates_per_rollout=2, entropy_bonus=ScheduledEntropy(0.01), top_entropy_share=0.5,
    )  # fmt: skip
    refinement = RefinementConfig(budget=1, mode="distill")
    fit(tmp_path, module, 2, data_of(refinement=refinement), callbacks=[watch])
    (batch,) = watch.batches
    assert len(batch) > 16, "some attempts should have been followed by another"
    assert valid_unless_truncated(batch)
    assert sum(not attempt.is_truncated for attempt in batch.attempts) > 5
    (logged,) = watch.logged
    # The weights stay as they are, so every ratio is 1, the gap 0, and the reference the policy.
    assert logged["policy/ratio_max"] == pytest.approx(1, abs=1e-4)
    assert logged["policy/sampler_gap"] < 1e-5
    assert logged["policy/kl"] == pytest.approx(0, abs=1e-6)
    gap, tokens = module.passes.sampler_gap(batch)
    assert gap / tokens < 1e-5
    free = replace(batch, tokens=replace(batch.tokens, allowed=None))
    gap, tokens = module.passes.sampler_gap(free)
    assert gap / tokens > 0.5, "without the sets training sees another policy than sampling"
    entropy_NT, free_NT = (module.passes.entropies(rows, batch.scored_N) for rows in (batch, free))
    assert 0 < entropy_NT.sum() < 0.5 * free_NT.sum()
    assert logged["policy/entropy"] < 2, "most places allow a few tokens"


def test_the_gradient_is_that_of_the_plain_formula(model_path: str, tmp_path: Path) -> None:
    """``-1/N sum_i A_i 1/|y_i| sum_t log softmax over the allowed tokens``, token by token: the ratio is 1."""

    def score(completion: str, answer: Any) -> float:
        return sum(map(ord, completion)) % 10 / 10

    watch = Watch()
    module = GRPOModule(
        policy=PolicyConfig(path=model_path), verifiers=score, beta=0.0, optimizer=sgd, max_grad_norm=None
    )
    after = fit(tmp_path, module, 1, data_of(), callbacks=[watch])
    (batch,) = watch.batches
    policy, allowed = Policy(PolicyConfig(path=model_path)), batch.tokens.allowed
    assert allowed is not None
    logits_NLV = policy.lm(input_ids=batch.tokens.ids_NL).logits / CONSTRAINED.temperature
    reward_BG = batch.reward_N.view(-1, 4)
    advantage_N = ((reward_BG - reward_BG.mean(1, True)) / (reward_BG.std(1, keepdim=True) + 1e-4)).flatten()
    assert advantage_N.count_nonzero() > 4
    loss = torch.zeros(())
    for row, attempt in enumerate(batch.attempts):
        start, ids = int(batch.tokens.prompt_lengths_N[row]), attempt.completion.token_ids
        for place, token in enumerate(ids):
            words = allowed.bits_SW[allowed.set_NT[row, place]].tolist()
            columns = [v for v in range(264) if words[v // 32] >> v % 32 & 1]
            logprobs = torch.log_softmax(logits_NLV[row, start + place - 1, columns], -1)
            loss = loss - advantage_N[row] * logprobs[columns.index(token)] / len(ids) / len(batch)
    loss.backward()
    for name, before in policy.named_parameters():
        assert before.grad is not None
        torch.testing.assert_close(after[f"policy.{name}"], before.detach() - before.grad, atol=2e-5, rtol=1e-3)


@llama_alone
def test_ppo_and_validation(model_path: str, tmp_path: Path) -> None:
    class Validated(Watch):
        def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
            self.single = batch.single

    watch = Validated()
    module = PPOModule(
        policy=PolicyConfig(path=model_path), verifiers=[JSONSchemaVerifier()], beta=0.1, optimizer=adam,
        minibatches_per_update=2,
    )  # fmt: skip
    data = data_of(val_sampling=replace(CONSTRAINED, temperature=0.0))
    fit(tmp_path, module, 4, data, callbacks=[watch], limit_val_batches=1, val_check_interval=2)
    assert len(watch.batches) == 2
    assert all(map(valid_unless_truncated, watch.batches))
    assert watch.logged[0]["policy/sampler_gap"] < 1e-4
    assert valid_unless_truncated(watch.single)
    assert sum(not attempt.is_truncated for attempt in watch.single.attempts) > 2
    assert watch.single.tokens.allowed is None, "an evaluation learns nothing"
