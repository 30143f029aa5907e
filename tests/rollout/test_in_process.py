"""The decoding engine against transformers' own generate, and against the training pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from grpo_lightning.errors import ConfigError, RunError
from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig
from grpo_lightning.rollout.batch import token_rows
from grpo_lightning.rollout.engines import decoder, in_process
from grpo_lightning.rollout.engines import rows as sampled_rows
from grpo_lightning.rollout.engines.base import Request
from grpo_lightning.rollout.sampling import SamplingParams, draw, row_seed, uniforms
from grpo_lightning.speed import decoding_cache, packed
from grpo_lightning.types import Completion, FinishReason
from tests.sampling import generate
from tests.tiny import tiny_tokenizer

PROMPTS = [[1, 30, 40, 50], [1, 60, 61, 62, 63, 64, 65, 66], [1, 90]]
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=24)


def with_adapter(path: str, dtype: str = "float32") -> Policy:
    """A policy whose adapter does something: peft starts it at zero."""
    policy = Policy(PolicyConfig(path=path, dtype=dtype, lora=LoRAConfig(r=4, alpha=8)))
    torch.manual_seed(1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return policy


def transformers_greedy(policy: Policy, prompt: list[int], tokens: int) -> list[int]:
    ids = policy.lm.eval().generate(
        input_ids=torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False,
        eos_token_id=policy.terminators, pad_token_id=policy.pad_token_id,
    )  # fmt: skip
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("prompts", [PROMPTS, [PROMPTS[0], PROMPTS[0][::-1]], [PROMPTS[1]]])
def test_greedy_equals_generate_padded_or_not(model_path: str, prompts: list[list[int]], lora: bool) -> None:
    policy = with_adapter(model_path) if lora else Policy(PolicyConfig(path=model_path))
    completions = generate(policy, prompts, 1, GREEDY, [0] * len(prompts))
    expected = [transformers_greedy(policy, prompt, 24) for prompt in prompts]
    assert [completion.token_ids for completion in completions] == expected
    assert len({tuple(ids) for ids in expected}) > 1 or len(prompts) == 1, "the prompts should tell something apart"


def test_a_row_does_not_depend_on_the_batch_it_ran_in(model_path: str) -> None:
    policy = Policy(PolicyConfig(path=model_path))
    sampling = SamplingParams(max_new_tokens=60)
    together = generate(policy, PROMPTS, 6, sampling, list(range(18)))
    alone = [generate(policy, [PROMPTS[row // 6]], 1, sampling, [row])[0] for row in range(18)]
    assert [completion.token_ids for completion in together] == [completion.token_ids for completion in alone]
    lengths = {len(completion.token_ids) for completion in together}
    assert len(lengths) > 2, "rows should finish at different times, or dropping them is not tested"


@pytest.mark.parametrize("lora", [False, True])
def test_sampled_logprobs_are_those_of_the_training_pass(model_path: str, lora: bool) -> None:
    policy = with_adapter(model_path) if lora else Policy(PolicyConfig(path=model_path))
    sampling = SamplingParams(temperature=0.7, top_p=0.8, max_new_tokens=16)
    completions = generate(policy, PROMPTS, 3, sampling, list(range(9)))
    tokens = token_rows([p for p in PROMPTS for _ in range(3)], [c.token_ids for c in completions], policy.pad_token_id)
    logprobs_NT, _ = policy.logprobs(tokens, temperature=0.7)
    for row, completion in enumerate(completions):
        own = logprobs_NT[row, : len(completion.token_ids)]
        torch.testing.assert_close(own, torch.tensor(completion.logprobs), atol=1e-4, rtol=1e-4)
        # Truncation only takes alternatives away, so the token drawn was at least as probable as before.
        assert all(
            after >= before - 1e-6
            for after, before in zip(completion.sampling_logprobs, completion.logprobs, strict=True)
        )
    assert any(c.sampling_logprobs != c.logprobs for c in completions)


def test_completions_end_at_any_terminator_or_at_the_cap(model_path: str) -> None:
    policy = Policy(PolicyConfig(path=model_path))
    completions = generate(policy, PROMPTS, 16, SamplingParams(max_new_tokens=40), list(range(48)))
    assert {2, 7} <= set(policy.terminators)
    for completion in completions:
        ended = completion.token_ids[-1] in policy.terminators
        assert completion.finish_reason is (FinishReason.STOP if ended else FinishReason.LENGTH)
        assert ended or len(completion.token_ids) == 40
        assert not set(completion.token_ids[:-1]) & set(policy.terminators)
        assert len(completion.logprobs) == len(completion.sampling_logprobs) == len(completion.token_ids)
    assert {c.token_ids[-1] for c in completions} >= {2, 7}, "both terminators should have been drawn"


def test_stop_strings_end_a_completion_and_stay_in_its_text_unless_told_otherwise(model_path: str) -> None:
    policy = Policy(PolicyConfig(path=model_path))
    free = generate(policy, PROMPTS, 8, SamplingParams(max_new_tokens=40), list(range(24)))
    text = max((c.text for c in free), key=len)
    stop = next(text[i : i + 2] for i in range(4, len(text) - 2) if text[i : i + 2].isascii())
    stopped = generate(policy, PROMPTS, 8, SamplingParams(max_new_tokens=40, stop=[stop]), list(range(24)))
    without = SamplingParams(max_new_tokens=40, stop=[stop], stop_in_text=False)
    cut = generate(policy, PROMPTS, 8, without, list(range(24)))
    for before, after, shorter in zip(free, stopped, cut, strict=True):
        assert shorter.token_ids == after.token_ids, "what is learned is the same"
        assert shorter.finish_reason is after.finish_reason
        assert shorter.text == after.text.removesuffix(stop)
        if stop in before.text:
            assert after.text.endswith(stop)
            assert after.text == before.text[: before.text.index(stop) + len(stop)]
            assert after.finish_reason is FinishReason.STOP
        else:
            assert after.token_ids == before.token_ids


def test_rollouts_do_not_run_the_adapter_and_leave_no_trace_in_the_weights(model_path: str) -> None:
    policy = with_adapter(model_path, dtype="bfloat16")
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    calls: list[str] = []
    for name, module in policy.lm.named_modules():
        if "lora_A" in name:
            module.register_forward_hook(lambda *_: calls.append("adapter"))
    first = generate(policy, PROMPTS, 4, SamplingParams(max_new_tokens=8), list(range(12)))
    assert not calls
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    second = generate(policy, PROMPTS, 4, SamplingParams(max_new_tokens=8), list(range(12)))
    assert first == second
    plain = generate(
        Policy(PolicyConfig(path=model_path, dtype="bfloat16")),
        PROMPTS,
        4,
        SamplingParams(max_new_tokens=8),
        list(range(12)),
    )
    assert plain != first, "the merged adapter should have changed what is sampled"


def test_the_global_random_state_is_neither_read_nor_changed(model_path: str) -> None:
    policy = Policy(PolicyConfig(path=model_path))
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = generate(policy, PROMPTS, 2, SamplingParams(max_new_tokens=8), list(range(6)))
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert generate(policy, PROMPTS, 2, SamplingParams(max_new_tokens=8), list(range(6))) == first
    assert generate(policy, PROMPTS, 2, SamplingParams(max_new_tokens=8), list(range(1, 7))) != first


def test_completions_are_handed_over_once_each_as_they_finish(model_path: str) -> None:
    handed: list[tuple[int, object]] = []
    policy = Policy(PolicyConfig(path=model_path))
    sampling = SamplingParams(max_new_tokens=30)

    def hand_over(rows: list[int], done: list[Completion]) -> list[Request]:
        handed.extend(zip(rows, done, strict=True))
        return []

    made = generate(policy, PROMPTS, 6, sampling, list(range(18)), hand_over)
    assert dict(handed) == dict(enumerate(made))
    assert len(handed) == 18
    order = [len(completion.token_ids) for _, completion in handed]
    assert order == sorted(order), "the short ones first"
    assert order[0] < order[-1]


@pytest.mark.parametrize("cap", [1, 7, 8, 16, 30])
def test_seldom_looks_split_prefills_and_small_blocks_change_nothing(
    model_path: str, cap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy(PolicyConfig(path=model_path))

    def run() -> tuple[list[Completion], dict[int, Completion]]:
        handed: dict[int, Completion] = {}
        sampling = SamplingParams(max_new_tokens=cap)

        def hand_over(rows: list[int], done: list[Completion]) -> list[Request]:
            handed.update(zip(rows, done, strict=True))
            return []

        return generate(policy, PROMPTS, 6, sampling, list(range(18)), hand_over), handed

    made, handed = run()
    for module, name, value in (
        (sampled_rows, "CHECK_EVERY", {"cpu": 8}),
        (decoder, "PREFILL_TOKENS", 8),
        (decoding_cache, "BLOCK", 3),
    ):
        monkeypatch.setattr(module, name, value)
        again, handed_again = run()
        for one, other in zip(made, again, strict=True):
            assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)
            torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4, rtol=1e-4)
        assert handed.keys() == handed_again.keys() == set(range(18))
    assert any(completion.finish_reason is FinishReason.STOP for completion in made) or cap == 1


WAYS_TO_JOIN = {
    "at once": {"MIN_JOIN_FRACTION": 0, "MAX_CACHE_GROWTH": 100},
    "as it pays": {},
    "with others, at a look": {"MIN_JOIN_FRACTION": 0.3, "MAX_CACHE_GROWTH": 100, "CHECK_EVERY": {"cpu": 8}},
    "once they fit, at a look": {"MIN_JOIN_FRACTION": 0, "MAX_CACHE_GROWTH": 1, "CHECK_EVERY": {"cpu": 8}},
    "at the end": {"MAX_CACHE_GROWTH": 0},
}


@pytest.fixture(scope="module")
def alone() -> Callable[[str, Request, SamplingParams], Completion]:
    """What a model answers to a request alone. Rows ask for the same, however they join."""
    policies: dict[str, Policy] = {}
    made: dict[str, Completion] = {}

    def generate_alone(path: str, request: Request, sampling: SamplingParams) -> Completion:
        if path not in policies:
            policies[path] = Policy(PolicyConfig(path=path))
        key = f"{path} {request} {sampling}"
        if key not in made:
            temperature = sampling.temperature if request.temperature is None else request.temperature
            (made[key],) = generate(
                policies[path], [request.prompt], 1, replace(sampling, temperature=temperature), [request.seed]
            )
        return made[key]

    return generate_alone


@pytest.mark.parametrize("way", WAYS_TO_JOIN)
@pytest.mark.parametrize("stop", [None, ["7"]])
def test_further_rows_are_what_they_would_be_alone(
    model_path: str, way: str, stop: list[str] | None, monkeypatch: pytest.MonkeyPatch, alone: Any
) -> None:
    for name, value in WAYS_TO_JOIN[way].items():
        monkeypatch.setattr(sampled_rows if name == "CHECK_EVERY" else in_process, name, value)
    joins: list[int] = []
    join = decoder.Decoder.join

    def spy(self: decoder.Decoder, prompts: list[list[int]]) -> None:
        joins.append(len(prompts))
        join(self, prompts)

    monkeypatch.setattr(decoder.Decoder, "join", spy)
    together: list[int] = []
    advance = decoder.Decoder.advance

    def count(self: decoder.Decoder, tokens_R: torch.Tensor) -> None:
        together.append(len(tokens_R))
        advance(self, tokens_R)

    monkeypatch.setattr(decoder.Decoder, "advance", count)
    policy = Policy(PolicyConfig(path=model_path))
    sampling = SamplingParams(max_new_tokens=40, stop=stop)
    asked: list[Request] = []

    def go_on(rows: list[int], completions: list[Completion]) -> list[Request]:
        further = [
            Request([1, *one.token_ids, *range(50 + row, 66 + row)], 100 + row, temperature=0.5 if row % 2 else None)
            for row, one in zip(rows, completions, strict=True)
            for _ in range(3 if row in (3, 4) else row < 40)
        ]
        asked.extend(further)
        return further

    made = generate(policy, PROMPTS, 6, sampling, list(range(18)), go_on)
    assert len(asked) >= 30
    assert bool(joins) == (way != "at the end")
    assert max(together) == 18
    expected = generate(policy, PROMPTS, 6, sampling, list(range(18)))
    monkeypatch.undo()
    expected += [alone(model_path, request, sampling) for request in asked]
    for one, other in zip(made, expected, strict=True):
        assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4, rtol=1e-4)


def test_equal_prompts_are_prefilled_once(model_path: str) -> None:
    policy, seen = Policy(PolicyConfig(path=model_path)), []
    policy.lm.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    sampling = SamplingParams(max_new_tokens=12)
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[2], PROMPTS[0]]
    made = generate(policy, prompts, 2, sampling, list(range(10)))
    rows = sum(shape[0] for shape in seen if shape[1] > 1)
    assert rows == 3, "the prompts that differ"
    alone = [generate(policy, [prompt], 2, sampling, [2 * i, 2 * i + 1]) for i, prompt in enumerate(prompts)]
    assert [one.token_ids for one in made] == [one.token_ids for group in alone for one in group]


def test_prefills_of_a_model_with_recurrent_states_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = Qwen3NextConfig(
        vocab_size=264, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, linear_num_value_heads=2, linear_num_key_heads=1, linear_key_head_dim=16,
        linear_value_head_dim=16, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, layer_types=["linear_attention", "full_attention"], eos_token_id=7,
        pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    Qwen3NextForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    policy = Policy(PolicyConfig(path=str(tmp_path)))
    whole = generate(policy, PROMPTS, 2, SamplingParams(max_new_tokens=6), list(range(6)))
    monkeypatch.setattr(decoder, "PREFILL_TOKENS", 1)
    parts = generate(policy, PROMPTS, 2, SamplingParams(max_new_tokens=6), list(range(6)))
    assert [one.token_ids for one in whole] == [one.token_ids for one in parts]

    def go_on(rows: list[int], done: list[Completion]) -> list[Request]:
        return [Request(PROMPTS[row % 3], row % 3 * 2 + row // 6) for row in rows if row < 12]

    monkeypatch.setattr(in_process, "MIN_JOIN_FRACTION", 0)
    monkeypatch.setattr(in_process, "MAX_CACHE_GROWTH", 100)
    made = generate(policy, PROMPTS, 2, SamplingParams(max_new_tokens=6), list(range(6)), go_on)
    assert sorted(one.token_ids for one in made) == sorted(one.token_ids for one in whole * 3)


@pytest.mark.parametrize(("without", "dtype"), [(["packed_weights"], torch.bfloat16), ([], torch.float32)])
def test_under_autocast_the_cache_has_the_type_in_which_attention_reads_it(
    model_path: str, without: list[str], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not without and not packed.has_operators(torch.bfloat16):
        pytest.skip("this CPU or build of torch multiplies no packed bfloat16")
    policy, sampling = Policy(PolicyConfig(path=model_path, without=without)), SamplingParams(max_new_tokens=24)
    found, dtypes = [], set()
    for in_float32 in (False, True):
        room = decoding_cache.RoomyLayer._room

        def spied(*shape: Any, room: Any = room, in_float32: bool = in_float32) -> torch.Tensor:
            buffer = room(*shape)
            dtypes.add(buffer.dtype)
            return buffer.float() if in_float32 else buffer

        monkeypatch.setattr(decoding_cache.RoomyLayer, "_room", spied)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(generate(policy, PROMPTS, 3, sampling, list(range(9))))
    assert dtypes == {dtype}
    assert found[0] == found[1]


def test_a_second_decoder_comes_when_the_first_is_gone(model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, alive = Policy(PolicyConfig(path=model_path)), weakref.WeakSet()
    before: list[int] = []

    class Counted(decoder.Decoder):
        def __init__(self, *args: Any) -> None:
            before.append(len(alive))
            alive.add(self)
            super().__init__(*args)

    monkeypatch.setattr(in_process, "Decoder", Counted)
    ended: list[int] = []

    def again(rows: list[int], completions: list[Completion]) -> list[Request]:
        ended.extend(rows)
        return [Request(prompt, 7, None) for prompt in PROMPTS] if len(ended) == 3 else []

    generate(policy, PROMPTS, 1, GREEDY, [1, 2, 3], on_finish=again)
    assert len(ended) == 6
    assert before == [0, 0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_end_the_run(model_path: str, temperature: float) -> None:
    policy = Policy(PolicyConfig(path=model_path))
    with torch.no_grad():
        policy.lm.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(RunError, match="the policy's log-probs are NaN"):
        generate(policy, PROMPTS, 1, SamplingParams(temperature=temperature, max_new_tokens=4), [1, 2, 3])


# -- one draw ---------------------------------------------------------------------------------------------------------


def kept(logits_NV: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Which tokens can be drawn at all, found by asking for every quantile."""
    grid = torch.linspace(0, 1, 4001)
    out = torch.zeros_like(logits_NV, dtype=torch.bool)
    for row in range(len(logits_NV)):
        drawn = draw(logits_NV[row].expand(len(grid), -1), grid, params)
        out[row, drawn.tokens_N.unique()] = True
    return out


@pytest.mark.parametrize(
    ("params", "warpers"),
    [
        (SamplingParams(top_k=3), [TopKLogitsWarper(3)]),
        (SamplingParams(top_p=0.6), [TopPLogitsWarper(0.6)]),
        (SamplingParams(min_p=0.3), [MinPLogitsWarper(0.3)]),
        (
            SamplingParams(top_k=5, top_p=0.7, min_p=0.1),
            [TopKLogitsWarper(5), TopPLogitsWarper(0.7), MinPLogitsWarper(0.1)],
        ),
    ],
)
def test_truncation_keeps_what_transformers_keeps(params: SamplingParams, warpers: list) -> None:
    logits_NV = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    warped = logits_NV
    for warper in warpers:
        warped = warper(None, warped)
    assert torch.equal(kept(logits_NV, params), warped > -torch.inf)
    # And the log-prob reported is that of the distribution so truncated.
    drawn = draw(logits_NV, torch.full((5,), 0.4), params)
    expected = warped.log_softmax(-1).gather(-1, drawn.tokens_N[:, None])[:, 0]
    torch.testing.assert_close(drawn.sampling_logprobs_N, expected)
    torch.testing.assert_close(drawn.logprobs_N, logits_NV.log_softmax(-1).gather(-1, drawn.tokens_N[:, None])[:, 0])


def test_draws_have_the_frequencies_of_the_softmax() -> None:
    logits_V = torch.tensor([2.0, 0.0, -1.0, 1.0, -torch.inf])
    count = 40_000
    numbers = torch.rand(count, generator=torch.Generator().manual_seed(0))
    drawn = draw(logits_V.expand(count, -1), numbers, SamplingParams(temperature=2.0))
    share = torch.bincount(drawn.tokens_N, minlength=5) / count
    # Four standard errors of a share.
    torch.testing.assert_close(share, (logits_V / 2).softmax(-1), atol=4 * (0.25 / count) ** 0.5, rtol=0)
    assert share[4] == 0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=12),
    st.floats(0, 1, exclude_max=True, width=32),
    st.floats(0.0625, 4),
)
def test_a_draw_is_always_a_token_with_weight(logits: list[float], number: float, temperature: float) -> None:
    logits_1V = torch.tensor([logits])
    for top_p in (1.0, 0.5):
        drawn = draw(logits_1V, torch.tensor([number]), SamplingParams(temperature=temperature, top_p=top_p))
        assert torch.isfinite(drawn.sampling_logprobs_N).all()
        assert drawn.sampling_logprobs_N.item() <= 1e-5


def test_temperature_0_takes_the_best_token_with_certainty() -> None:
    drawn = draw(torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([0.0]), SamplingParams(temperature=0.0))
    assert drawn.tokens_N.tolist() == [1]
    assert drawn.sampling_logprobs_N.tolist() == [0.0]


def test_rows_have_random_numbers_of_their_own() -> None:
    both = uniforms([5, 6], 8)
    assert torch.equal(uniforms([6], 8)[0], both[1])
    assert not torch.equal(both[0], both[1])
    assert (
        len(
            {
                row_seed(seed, f"train/{step}/{place}", member)
                for seed in (0, 1)
                for step in range(9)
                for place in range(9)
                for member in range(9)
            }
        )
        == 2 * 9**3
    )


@pytest.mark.parametrize(
    ("params", "text"),
    [
        (SamplingParams(temperature=-1), r"data.sampling.temperature: must be 0 \(greedy\) or more, not -1"),
        (SamplingParams(top_k=-1), "data.sampling.top_k"),
        (SamplingParams(top_p=0), "data.sampling.top_p: must be above 0 and at most 1, not 0"),
        (SamplingParams(min_p=1), "data.sampling.min_p"),
        (SamplingParams(max_new_tokens=0), "data.sampling.max_new_tokens: must be at least 1, not 0"),
        (SamplingParams(stop=[""]), "data.sampling.stop"),
    ],
)
def test_values_out_of_range_name_their_key(params: SamplingParams, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        params.validate("data.sampling")


def test_validation_takes_length_and_stops_from_training() -> None:
    train = SamplingParams(max_new_tokens=7, stop=["x"])
    assert SamplingParams(temperature=0).filled_from(train) == SamplingParams(
        temperature=0, max_new_tokens=7, stop=["x"]
    )
    own = SamplingParams(max_new_tokens=3, stop=[])
    assert own.filled_from(train) == own
