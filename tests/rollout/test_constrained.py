"""Constrained completions: what is drawn, and log-probs among the allowed tokens, in sampling and in training."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import regex
import torch
from torch import Tensor

pytest.importorskip("llguidance", reason="llguidance is an extra: pip install -e '.[constraint]'")

from grpo_lightning.algorithms.microbatch import microbatches
from grpo_lightning.constraints import Constraint, Regex, RowSchema
from grpo_lightning.environments import GuessNumber
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig
from grpo_lightning.rollout.batch import token_rows
from grpo_lightning.rollout.engines import in_process
from grpo_lightning.rollout.engines.base import Request
from grpo_lightning.rollout.engines.in_process import InProcessEngine
from grpo_lightning.rollout.generate import generate_texts
from grpo_lightning.rollout.sampling import SamplingParams, draw
from grpo_lightning.types import Completion, FinishReason, Prompt, TokenRows
from tests.tiny import CONFIG_EOS, IM_END, tiny_tokenizer
from tests.toy import CopyEngine, grpo, llama_alone, rollouts, trainer

PATTERN = "[a-d]{2,6}|x[0-9]+"
PROMPTS = [[1, 30, 40, 50], [1, 60, 61, 62, 63, 64, 65, 66], [1, 90]]


def sample(policy: Policy, sampling: SamplingParams, seeds: int = 12) -> list[Completion]:
    """One completion per seed; the prompts take turns. Rows that wait join as soon as they can."""
    engine = InProcessEngine()
    engine.start(policy, 8 + sampling.cap)
    assert sampling.constraint is not None
    grammar = sampling.constraint.grammar(Prompt([]))
    further = [Request(PROMPTS[0], 100 + seed, None, grammar) for seed in range(3)]

    def follow(_: list[int], __: list[Completion]) -> list[Request]:
        return [further.pop()] if further else []

    requests = [Request(PROMPTS[seed % 3], seed, None, grammar) for seed in range(seeds)]
    return engine.generate(requests, sampling, follow)


def prompts_of(completions: list[Completion]) -> list[list[int]]:
    return [PROMPTS[number % 3] if number < 12 else PROMPTS[0] for number in range(len(completions))]


def rows_of(policy: Policy, completions: list[Completion], constraint: Constraint) -> TokenRows:
    tokens = token_rows(prompts_of(completions), [c.token_ids for c in completions], policy.pad_token_id)
    grammar = constraint.grammar(Prompt([]))
    return replace(tokens, allowed=policy.grammars.replay([(grammar, c.token_ids) for c in completions]))


CHARACTERS = dict(enumerate(tiny_tokenizer().batch_decode([[token] for token in range(264)])))


@functools.cache
def allowed_by_hand(text: str) -> list[int]:
    """What may follow a text by another library: the tokens are bytes, and the pattern is ASCII."""
    allowed = [CONFIG_EOS, IM_END] if regex.fullmatch(PATTERN, text) else []
    return allowed + [
        token
        for token in range(8, 264)
        if CHARACTERS[token].isascii() and regex.fullmatch(PATTERN, text + CHARACTERS[token], partial=True)
    ]


def logprobs_by_hand(policy: Policy, prompt: list[int], ids: list[int], temperature: float) -> Tensor:
    """Softmax over the allowed columns of the model's own logits, token by token."""
    with torch.no_grad():
        logits_LV = policy.lm(input_ids=torch.tensor([prompt + ids])).logits[0] / temperature
    found = []
    for place, token in enumerate(ids):
        allowed = allowed_by_hand("".join(map(CHARACTERS.__getitem__, ids[:place])))
        found.append(torch.log_softmax(logits_LV[len(prompt) + place - 1, allowed], -1)[allowed.index(token)])
    return torch.stack(found)


@pytest.mark.parametrize("lora", [False, True])
def test_logprobs_are_those_among_the_allowed_tokens(
    model_path: str, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_process, "MIN_JOIN_FRACTION", 0)
    policy = Policy(PolicyConfig(path=model_path, lora=LoRAConfig(r=4, alpha=8) if lora else None))
    constraint = Regex(PATTERN)
    for sampling in (
        SamplingParams(temperature=0.7, max_new_tokens=8, constraint=constraint),
        SamplingParams(top_k=4, top_p=0.9, max_new_tokens=8, constraint=constraint),
        SamplingParams(temperature=0.0, max_new_tokens=8, constraint=constraint),
    ):
        completions = sample(policy, sampling)
        assert len(completions) == 15
        tokens = rows_of(policy, completions, constraint)
        temperature = sampling.temperature or 1.0
        logprobs_NT, entropy_NT = policy.logprobs(tokens, sampling.temperature)
        assert entropy_NT.isfinite().all()
        for row, (prompt, completion) in enumerate(zip(prompts_of(completions), completions, strict=True)):
            ended = completion.finish_reason is FinishReason.STOP
            assert regex.fullmatch(PATTERN, completion.text, partial=not ended), completion.text
            assert ended == (completion.token_ids[-1] in policy.terminators)
            expected = logprobs_by_hand(policy, prompt, completion.token_ids, temperature)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=1e-4)
            own = logprobs_NT[row, : len(expected)].detach()
            torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)
        free_NT, _ = policy.logprobs(replace(tokens, allowed=None), sampling.temperature)
        assert (free_NT - logprobs_NT).abs().max() > 1, "without the sets the log-probs are others"


def test_a_row_does_not_depend_on_the_batch_it_ran_in(model_path: str) -> None:
    policy = Policy(PolicyConfig(path=model_path))
    sampling = SamplingParams(max_new_tokens=8, constraint=Regex(PATTERN))
    together = sample(policy, sampling)
    grammar = Regex(PATTERN).grammar(Prompt([]))
    engine = InProcessEngine()
    engine.start(policy, 20)
    alone = [engine.generate([Request(PROMPTS[seed % 3], seed, None, grammar)], sampling)[0] for seed in range(12)]
    assert [c.token_ids for c in together[:12]] == [c.token_ids for c in alone]
    assert len({c.text for c in alone}) > 6


def test_every_document_that_ends_fits_the_schema(model_path: str) -> None:
    policy = Policy(PolicyConfig(path=model_path))
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": -9, "maximum": 99}, "b": {"enum": ["x", True, None]}},
        "required": ["n", "b"],
        "additionalProperties": False,
    }
    completions = sample(policy, SamplingParams(max_new_tokens=24, constraint=RowSchema(schema, max_whitespace=0)))
    documents = [json.loads(c.text) for c in completions if c.finish_reason is FinishReason.STOP]
    assert len(documents) > 5
    for document in documents:
        assert list(document) == ["n", "b"]
        assert -9 <= document["n"] <= 99
        assert document["b"] in ("x", True, None)


def test_micro_batches_and_shared_prompts_change_neither_logprobs_nor_gradients(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy(PolicyConfig(path=model_path))
    constraint = Regex(PATTERN)
    completions = sample(policy, SamplingParams(max_new_tokens=8, constraint=constraint))
    tokens = rows_of(policy, [*completions, completions[0]], constraint)  # two equal rows: one is read out of the other
    weights_NT = torch.linspace(-1, 2, tokens.allowed.set_NT.numel()).view_as(tokens.allowed.set_NT)

    def results(budget: int, share: bool) -> list[Tensor]:
        policy.zero_grad()
        found_NT = torch.zeros(2, *weights_NT.shape)
        shared = False
        for part in microbatches(tokens, torch.arange(len(tokens)), budget, share, overhead=1):
            shared |= part.tokens.sharing is not None
            part_NT, entropy_NT = policy.logprobs(part.tokens)
            width = part_NT.shape[1]
            found_NT[0, part.rows, :width], found_NT[1, part.rows, :width] = part_NT.detach(), entropy_NT.detach()
            (weights_NT[part.rows, :width] * (part_NT - 0.1 * entropy_NT)).sum().backward()
        assert shared == share
        return [*found_NT, *(p.grad.clone() for p in policy.parameters() if p.grad is not None)]

    plain = results(10**6, share=False)
    for other in (results(40, share=False), results(10**6, share=True)):
        torch.testing.assert_close(other, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("wobble", [0.0, 1e-7])
def test_an_excluded_token_is_not_drawn_even_where_a_parallel_sum_wobbles(
    wobble: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = torch.Tensor.cumsum
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda values, dim: plain(values, dim) + wobble)
    logits_NV = torch.tensor([[9.0, 3.0, 9.0]])
    excluded_NV = torch.tensor([[True, False, True]])
    for uniform in (0.0, 0.5, 1.0):
        drawn = draw(logits_NV, torch.tensor([uniform]), SamplingParams(), None, excluded_NV)
        assert drawn.tokens_N.tolist() == [1]
        assert drawn.logprobs_N.tolist() == drawn.sampling_logprobs_N.tolist() == [0.0]


@llama_alone
def test_texts_of_prompts_in_hand_are_constrained_too(model_path: str) -> None:
    policy = Policy(PolicyConfig(path=model_path))
    texts = generate_texts(policy, ["a", "b"], SamplingParams(constraint=Regex("yes|no")), 0)
    assert set(texts) <= {"yes", "no"}
    with pytest.raises(ConfigError, match=r"sampling.constraint: RowSchema: it has no schema"):
        generate_texts(policy, ["a"], SamplingParams(constraint=RowSchema()), 0)


@llama_alone
def test_texts_of_prompts_in_hand_end_where_the_chat_template_says(model_path: str) -> None:
    policy = Policy(PolicyConfig(path=model_path), chat_template="plain")
    sampling = SamplingParams(max_new_tokens=40, constraint=Regex("5\n\nQuestion:\nx"))
    assert generate_texts(policy, ["2 + 3?"], sampling, 0) == ["5"]
    assert generate_texts(policy, ["2 + 3?"], replace(sampling, stop=[]), 0) == ["5\n\nQuestion:\nx"]


# -- what is refused, before the model loads ----------------------------------------------------------------------


@pytest.mark.parametrize("key", ["sampling", "val_sampling"])
def test_rows_that_cannot_be_constrained_are_named(tiny_model: Callable[[str], str], tmp_path: Path, key: str) -> None:
    def fit(constraint: Constraint) -> None:
        options: dict[str, Any] = {key: SamplingParams(max_new_tokens=4, constraint=constraint)}
        trainer(tmp_path, 1).fit(grpo(tiny_model("llama")), datamodule=rollouts(**options))

    split = "train" if key == "sampling" else "val"
    with pytest.raises(ConfigError) as error:
        fit(RowSchema())
    assert str(error.value) == (
        f"data.{key}.constraint: RowSchema cannot constrain row 0 of the {split} split: it has no schema in "
        "metadata['schema'], and the option 'schema' is not set; fix the row, or remove the constraint"
    )
    with pytest.raises(ConfigError, match=rf"data.{key}.constraint: Regex cannot constrain row 0 .*: unclosed group"):
        fit(Regex("("))
    with pytest.raises(ConfigError, match=r'RowSchema cannot constrain row 0 .* Unimplemented keys: \["not"\]'):
        fit(RowSchema({"not": {"type": "string"}}))


@pytest.mark.parametrize("key", ["sampling", "val_sampling"])
def test_an_engine_that_does_not_constrain_is_refused(key: str) -> None:
    options: dict[str, Any] = {key: SamplingParams(constraint=Regex("a"))}
    with pytest.raises(ConfigError, match=rf"data.{key}.constraint: CopyEngine does not keep completions to a grammar"):
        rollouts(engine=CopyEngine(), **options)


def test_the_turns_of_an_environment_are_not_constrained() -> None:
    with pytest.raises(ConfigError, match=r"data.sampling.constraint: the turns of an environment cannot be"):
        rollouts(environment=GuessNumber(), sampling=SamplingParams(constraint=Regex("a")))


def test_without_the_extra_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"llguidance is not installed: pip install 'grpo-lightning\[constraint\]'"):
        rollouts(sampling=SamplingParams(constraint=Regex("a")))
