"""Shared prompts: results equal those of separate rows, and micro-batches stay within the token budget."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import FalconH1Config, FalconH1ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM
from transformers.cache_utils import DynamicLayer
from transformers.models.lfm2.modeling_lfm2 import Lfm2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from grpo_lightning.algorithms import microbatch
from grpo_lightning.algorithms.microbatch import longest_continuations, microbatches, shortest_beginnings
from grpo_lightning.models import LoRAConfig, Policy, PolicyConfig
from grpo_lightning.rollout.batch import token_rows
from grpo_lightning.speed import passes, shared_prompt
from grpo_lightning.speed.passes import pass_overhead
from grpo_lightning.speed.shared_prompt import SharedPrompts, predicting_states
from grpo_lightning.types import Sharing, TokenRows
from tests.tiny import tiny_config, tiny_tokenizer
from tests.toy import Watch, fit, grpo, half, rollouts, same

# Two prompts of equal length, one longer, one of a single token; completions of one or more tokens.
GROUPS = [(9, [12, 1, 2, 7]), (9, [5, 5]), (14, [3, 20, 1]), (1, [4, 9])]
LEVEL = [(9, [12, 1, 2, 7]), (9, [5, 5])]


def grouped(groups: list[tuple[int, list[int]]], pad: int = 0, seed: int = 0) -> TokenRows:
    """Make the rows of groups, given by the length of the prompt and those of the completions."""
    generator = torch.Generator().manual_seed(seed)
    prompts, completions, numbers = [], [], []
    for number, (prompt_length, lengths) in enumerate(groups):
        prompt = torch.randint(8, 264, (prompt_length,), generator=generator).tolist()
        for length in lengths:
            prompts.append(prompt)
            completions.append(torch.randint(8, 264, (length,), generator=generator).tolist())
            numbers.append(number)
    return with_prefixes(token_rows(prompts, completions, pad), numbers)


def with_prefixes(tokens: TokenRows, numbers: list[int]) -> TokenRows:
    """Share every prompt as a prefix, with a separate sequence per row."""
    return replace(tokens, sharing=Sharing(torch.arange(len(tokens)), torch.tensor(numbers), tokens.prompt_lengths_N))


def plain(tokens: TokenRows) -> TokenRows:
    return replace(tokens, sharing=None)


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms in the dtype of their input: those of transformers always use float32, which is exact only to 1e-7."""

    def forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        return self.weight * hidden * (hidden.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    for norm in (LlamaRMSNorm, Lfm2RMSNorm):
        monkeypatch.setattr(norm, "forward", forward)


def policy_in_float64(path: str, lora: bool = False) -> Policy:
    torch.manual_seed(0)
    policy = Policy(PolicyConfig(path=path, lora=LoRAConfig(r=4) if lora else None)).double()
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)  # an adapter starts at zero
    return policy


def results(policy: Policy, tokens: TokenRows) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Return log-probs, entropies, and the gradient of a weighted sum of both."""
    policy.zero_grad()
    logprobs_NT, entropy_NT = policy.logprobs(tokens, temperature=0.8)
    weights_NT = torch.linspace(-1, 2, logprobs_NT.numel(), dtype=logprobs_NT.dtype).view_as(logprobs_NT)
    ((logprobs_NT + 0.3 * entropy_NT) * weights_NT).sum().backward()
    gradients = [parameter.grad for parameter in policy.trainable_parameters() if parameter.grad is not None]
    assert len(gradients) == len(policy.trainable_parameters())
    return logprobs_NT.detach(), entropy_NT.detach(), [gradient.clone() for gradient in gradients]


def close(one: Any, other: Any, forward: float = 1e-13, gradient: float = 1e-6) -> None:
    for index in (0, 1):
        torch.testing.assert_close(one[index], other[index], atol=forward, rtol=forward)
    for mine, theirs in zip(one[2], other[2], strict=True):
        # Not tighter, since transformers' norms always compute in float32.
        assert (mine - theirs).norm() <= gradient * theirs.norm()


@pytest.mark.parametrize(
    ("model_path", "lora", "groups", "overhead"),
    half(["llama", "lfm2"], [False, True], [GROUPS, LEVEL], [0, 64]),
    indirect=["model_path"],
)
def test_shared_prompts_give_the_logprobs_and_gradients_of_plain_rows(
    model_path: str, monkeypatch: pytest.MonkeyPatch, groups: list[tuple[int, list[int]]], lora: bool, overhead: int
) -> None:
    monkeypatch.setattr(shared_prompt, "pass_overhead", lambda *_: overhead)  # 0: one pass per length
    policy = policy_in_float64(model_path, lora)
    tokens = grouped(groups)
    shared, rows = results(policy, tokens), results(policy, plain(tokens))
    close(shared, rows)
    assert all(gradient.norm() > 0 for gradient in rows[2])
    mixed = tokens.select(torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0)))
    close(results(policy, mixed), results(policy, plain(mixed)))


def test_padding_and_rows_without_tokens_change_nothing(model_path: str) -> None:
    policy = policy_in_float64(model_path)
    close(results(policy, grouped(GROUPS, pad=99)), results(policy, grouped(GROUPS)), forward=0, gradient=0)
    empty = grouped([(9, [4, 0, 6]), (3, [0, 0])])
    close(results(policy, empty), results(policy, plain(empty)))
    nothing = grouped([(9, [0, 0])])
    assert policy.logprobs(nothing)[0].shape == (2, 0)


def test_positions_after_a_rows_end_are_zero_and_pass_no_gradient(model_path: str) -> None:
    policy = policy_in_float64(model_path)
    tokens = grouped(GROUPS)
    logprobs_NT, entropy_NT = policy.logprobs(tokens)
    behind_NT = torch.arange(logprobs_NT.shape[1]) >= tokens.completion_lengths_N[:, None]
    assert (logprobs_NT[behind_NT] == 0).all()
    assert (entropy_NT[behind_NT] == 0).all()
    logprobs_NT.backward(torch.where(behind_NT, torch.nan, 0.0).double())
    assert all((parameter.grad == 0).all() for parameter in policy.trainable_parameters() if parameter.grad is not None)


def test_in_bfloat16_they_agree_within_rounding(model_path: str) -> None:
    policy = policy_in_float64(model_path, lora=True).float()
    tokens = grouped(GROUPS)
    exact = policy.logprobs(plain(tokens))[0]
    with torch.autocast("cpu", torch.bfloat16):
        shared, rows = policy.logprobs(tokens)[0], policy.logprobs(plain(tokens))[0]
    assert (shared - exact).norm() < 1.5 * (rows - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("kind", ["gemma3", "lfm3"])
def test_prompts_longer_than_a_sliding_window_are_shared(tiny_model: Callable[[str], str], kind: str) -> None:
    policy = policy_in_float64(tiny_model(kind))
    assert policy.shares_prompts
    assert policy.lm.config.sliding_window == 8
    tokens = grouped([*GROUPS, (27, [4, 11, 2])])
    # Not tighter, since transformers' norms always compute in float32.
    close(results(policy, tokens), results(policy, plain(tokens)), forward=1e-6, gradient=1e-5)


def test_a_gated_delta_hybrid_runs_its_rows_one_by_one(
    tiny_model: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its recurrent state is overwritten in place, through which no gradient passes."""
    path = tiny_model("qwen3_5")
    with caplog.at_level(logging.INFO):
        policy = Policy(PolicyConfig(path=path))
    assert not policy.shares_prompts
    assert "shared_prompts: not used: Qwen3_5ForCausalLM cannot continue from a forked cache" in caplog.text
    tokens = plain(grouped(LEVEL))
    logprobs_NT, _ = policy.logprobs(tokens)
    for row, (prompt, length) in enumerate(zip(tokens.prompt_lengths_N, tokens.completion_lengths_N, strict=True)):
        ids = tokens.ids_NL[row : row + 1, : prompt + length]
        whole = policy.lm(input_ids=ids).logits[0, prompt - 1 : -1].log_softmax(-1)
        expected = whole.gather(1, ids[0, prompt:, None])[:, 0]
        torch.testing.assert_close(logprobs_NT[row, :length], expected, atol=1e-4, rtol=1e-4)
    watch = Watch()
    fit(tmp_path, grpo(path), 1, callbacks=[watch])
    assert watch.logged[0]["policy/sampler_gap"] < 1e-4
    assert watch.logged[0]["optim/grad_norm"] > 0


# -- rows that are prefixes of others ---------------------------------------------------------------------------------


def conversations(pad: int = 0) -> TokenRows:
    """Two groups with further attempts after a first one and its feedback, and some equal completions.

    In order of rows: a group of five, of which two are equal and one differs only in its last token; further attempts
    after its first and third; a second group of two, and a third attempt after the second; a conversation that the chat
    template rendered differently, so that the attempt is not a prefix of it.
    """
    draw = torch.Generator().manual_seed(0)

    def some(length: int) -> list[int]:
        return torch.randint(8, 264, (length,), generator=draw).tolist()

    one, other = some(9), some(14)
    first, cut, short = some(12), some(7), some(1)
    rows = [(one, first), (one, first), (one, [*first[:-1], 9]), (one, cut), (one, short)]
    told = [*one, *first, *some(6)]
    again = some(5)
    rows += [(told, again), (told, [*again[:3], *some(4)]), ([*one, *cut[:-1], *some(8)], some(3))]
    rows += [(other, cut), (other, some(3)), ([*other, *cut, *some(5), *some(4), *some(6)], some(2))]
    rows += [([*other[:-1], 9, *cut, *some(5)], some(4))]
    return token_rows([prompt for prompt, _ in rows], [completion for _, completion in rows], pad)


def planned(tokens: TokenRows, prefixes: bool) -> TokenRows:
    """Put all rows into one micro-batch, with shared prompts or without."""
    # More than all prompts together, so that one micro-batch holds all rows.
    (part,) = microbatches(tokens, torch.arange(len(tokens)), 10**6, overhead=1000)
    assert part.tokens.sharing is not None
    assert not part.tokens.sharing.prefix_lengths_N.any()
    if not prefixes:
        return part.tokens.select(part.rows.argsort())
    sequences = microbatch._shared_sequences(tokens)
    return replace(tokens, sharing=microbatch._sharing(sequences, True, tokens.ids_NL.device))


@pytest.mark.parametrize(
    ("model_path", "lora", "prefixes", "overhead"),
    half(["llama", "lfm2"], [False, True], [False, True], [0, 64]),
    indirect=["model_path"],
)
@pytest.mark.usefixtures("exact_norms")
def test_prefixes_are_read_from_the_pass_of_the_longer_row(
    model_path: str, monkeypatch: pytest.MonkeyPatch, prefixes: bool, lora: bool, overhead: int
) -> None:
    policy, tokens = policy_in_float64(model_path, lora), conversations()
    shared = planned(tokens, prefixes)
    assert shared.sharing is not None
    # By hand: two attempts after the first completion (which carry it, its equals and the single token), one after
    # the fourth; in the other group the third attempt, which carries the first, and the second; and the stranger.
    assert len(shared.sharing.sequence_of_N.unique()) == 6
    assert len(shared.sharing.prefix_of_N.unique()) == 3
    monkeypatch.setattr(shared_prompt, "pass_overhead", lambda *_: overhead)
    close(results(policy, shared), results(policy, tokens), gradient=1e-10)
    mixed = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))
    close(results(policy, shared.select(mixed)), results(policy, tokens.select(mixed)), gradient=1e-10)
    padded = planned(conversations(pad=99), prefixes)
    close(results(policy, padded), results(policy, shared), forward=0, gradient=0)


def test_the_gradient_is_bitwise_equal_on_several_threads(tiny_model: Callable[[str], str]) -> None:
    policy, equal = Policy(PolicyConfig(path=tiny_model("llama"))), [[*range(8, 68)]] * 64
    (part,) = microbatches(token_rows([[5, 6]] * 64, equal, 0), torch.arange(64), 8192)
    assert part.real_tokens == 62
    weights_NT = torch.randn(64, 60, generator=torch.Generator().manual_seed(0))

    def gradient() -> torch.Tensor:
        policy.zero_grad()
        (policy.logprobs(part.tokens)[0] * weights_NT).sum().backward()
        return torch.cat([one.grad.flatten() for one in policy.trainable_parameters() if one.grad is not None])

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first = gradient()
        assert all(torch.equal(gradient(), first) for _ in range(8))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("form", ["copy", "adapter-off"])
def test_the_reference_shares_prompts_too(model_path: str, form: str) -> None:
    lora = LoRAConfig(r=4) if form == "adapter-off" else None
    policy = Policy(PolicyConfig(path=model_path, lora=lora), with_reference=True)
    assert policy.reference.form == form
    tokens = grouped(GROUPS)
    shared, rows = policy.logprobs(tokens, reference=True)[0], policy.logprobs(plain(tokens), reference=True)[0]
    torch.testing.assert_close(shared, rows, atol=1e-5, rtol=1e-5)
    assert not shared.requires_grad


# -- planning ---------------------------------------------------------------------------------------------------------

LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(1, 30), min_size=1, max_size=5)), max_size=5)


@settings(max_examples=60, deadline=None)
@given(groups=LENGTHS, budget=st.integers(1, 400), share=st.booleans())
def test_a_plan_contains_every_row_once_and_keeps_the_budget(
    groups: list[tuple[int, list[int]]], budget: int, share: bool
) -> None:
    tokens = grouped(groups) if groups else TokenRows(torch.ones(1, 1), torch.ones(1), torch.ones(1))
    wanted = torch.arange(len(tokens) if groups else 0).flip(0)[: max(1, len(tokens) - 1)]
    parts = microbatches(plain(tokens), wanted, budget, share)
    assert sorted(row for part in parts for row in part.rows.tolist()) == sorted(wanted.tolist())
    for part in parts:
        sharing = part.tokens.sharing
        sequences = len(part.rows) if sharing is None else len(sharing.sequence_of_N.unique())
        assert part.padded_tokens <= budget or sequences == 1
        assert part.real_tokens <= part.padded_tokens
        assert torch.equal(part.tokens.completion_lengths_N, tokens.completion_lengths_N[part.rows])
        assert torch.equal(part.tokens.prompt_lengths_N, tokens.prompt_lengths_N[part.rows])
        assert share or part.tokens.sharing is None
        if part.tokens.sharing is None:
            assert part.real_tokens == part.tokens.lengths_N.sum()
        else:
            truth, found = tokens.sharing.prefix_of_N[part.rows], part.tokens.sharing.prefix_of_N
            assert torch.equal(truth[:, None] == truth, found[:, None] == found)


LETTERS = st.lists(st.sampled_from([8, 9]), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=LENGTHS.filter(bool).map(grouped).map(plain)
    | st.lists(st.tuples(LETTERS, LETTERS), min_size=1, max_size=12).map(
        # Two letters give equal rows, and rows and prompts that are prefixes of others, in every combination.
        lambda rows: token_rows([prompt for prompt, _ in rows], [completion for _, completion in rows], 0)
    ),
    budget=st.integers(1, 400),
    overhead=st.sampled_from([1, 64]),
)
def test_the_gradient_does_not_depend_on_the_plan(
    tiny_model: Callable[[str], str],
    exact_norms: None,
    monkeypatch: pytest.MonkeyPatch,
    rows: TokenRows,
    budget: int,
    overhead: int,
) -> None:
    monkeypatch.setattr(shared_prompt, "pass_overhead", lambda *_: overhead)
    policy = policy_in_float64(tiny_model("lfm2"))
    expected = results(policy, rows)
    parts = microbatches(rows, torch.arange(len(rows)), budget, overhead=overhead)
    assert sorted(row for part in parts for row in part.rows.tolist()) == list(range(len(rows)))
    policy.zero_grad()
    found = torch.zeros_like(expected[0])
    weights_NT = torch.linspace(-1, 2, found.numel(), dtype=found.dtype).view_as(found)
    for part in parts:
        assert (
            part.padded_tokens <= budget or len(part.rows) == 1 or len(part.tokens.sharing.sequence_of_N.unique()) == 1
        )
        logprobs_NT, entropy_NT = policy.logprobs(part.tokens, temperature=0.8)
        width = logprobs_NT.shape[1]
        found[part.rows, :width] = logprobs_NT.detach()
        ((logprobs_NT + 0.3 * entropy_NT) * weights_NT[part.rows, :width]).sum().backward()
    torch.testing.assert_close(found, expected[0], atol=1e-13, rtol=1e-13)
    for parameter, gradient in zip(policy.trainable_parameters(), expected[2], strict=True):
        assert parameter.grad is not None
        # Some rows' gradients cancel except for rounding.
        assert (parameter.grad - gradient).norm() <= 1e-10 * gradient.norm() + 1e-12


def test_equal_completions_and_followed_attempts_count_once() -> None:
    prompt, first, told = [8] * 40, [9] * 20, [10] * 30
    rows = token_rows([prompt, prompt, [*prompt, *first, *told]], [first, first, [11] * 10], 0)
    (part,) = microbatches(rows, torch.arange(3), 8192)
    assert (part.real_tokens, part.padded_tokens) == (100, 100)
    alone = microbatches(rows, torch.arange(3), 8192, share=False)
    assert sum(one.real_tokens for one in alone) == 60 + 60 + 100
    # The rows that are read from the third count an eighth of their 20 tokens: 105 in all, plus a separate row.
    more = token_rows([prompt, prompt, [*prompt, *first, *told], [12] * 50], [first, first, [11] * 10, [13] * 50], 0)
    assert [len(one.rows) for one in microbatches(more, torch.arange(4), 205)] == [4]
    assert [len(one.rows) for one in microbatches(more, torch.arange(4), 204)] == [3, 1]


def test_long_prompts_are_shared_and_short_ones_are_not() -> None:
    rows = torch.arange(8)
    (part,) = microbatches(grouped([(300, [30] * 8)]), rows, 8192)
    # By hand: the prompt once and eight completions.
    assert (part.real_tokens, part.padded_tokens) == (300 + 8 * 30, 300 + 8 * 30)
    assert part.tokens.sharing is not None
    # 7 x 4 tokens are less than a second pass costs; a single row has nothing to share.
    for few in (grouped([(4, [30] * 8)]), grouped([(300, [30])] * 8)):
        assert all(part.tokens.sharing is None for part in microbatches(few, rows, 8192))


def test_a_group_above_the_budget_is_split() -> None:
    # By hand: a prompt of 300, and per row 30 tokens plus 300 / 8 forked ones: 437 for two rows, 772 for seven.
    parts = microbatches(grouped([(300, [30] * 8)]), torch.arange(8), 440)
    assert [len(part.rows) for part in parts] == [2, 2, 2, 2]
    assert all(part.tokens.sharing is not None for part in parts)
    assert [len(part.rows) for part in microbatches(grouped([(300, [30] * 8)]), torch.arange(8), 773)] == [7, 1]


def test_plain_rows_are_split_by_the_budget_and_where_padding_costs_more_than_a_pass() -> None:
    tokens, rows = grouped([(1, [length]) for length in (5, 9, 1, 9, 30, 2, 2)]), torch.arange(7)
    # By hand: 31 alone (over the budget), two of 10, then 6 3 3 2 at 6 tokens each, 24 together.
    parts = microbatches(tokens, rows, 24, overhead=1000)
    assert [part.tokens.lengths_N.tolist() for part in parts] == [[31], [10, 10], [6, 3, 3, 2]]
    assert [part.padded_tokens for part in parts] == [31, 20, 24]
    # 10 with 31 wastes 21; 6 with 10 wastes 4, and 3 then 7 more.
    lengths = [part.tokens.lengths_N.tolist() for part in microbatches(tokens, rows, 1000, overhead=5)]
    assert lengths == [[31], [10, 10, 6], [3, 3, 2]]


KEYS = st.lists(st.text("ab", max_size=5).map(str.encode), max_size=12)


@given(KEYS)
def test_prefixes_and_continuations_equal_a_search_over_all_pairs(keys: list[bytes]) -> None:
    beginnings, continuations = shortest_beginnings(keys), longest_continuations(keys)
    for index, key in enumerate(keys):
        assert keys[beginnings[index]] == min((one for one in keys if key.startswith(one)), key=len)
        continued = keys[continuations[index]]
        assert continued.startswith(key)
        assert not any(one.startswith(continued) and one != continued for one in keys)
    for found in (beginnings, continuations):
        assert all(found[index] == index for index in found)


# -- fallbacks --------------------------------------------------------------------------------------------------------


def test_no_position_is_past_the_end_of_a_row(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=264, n_positions=64, n_embd=32, n_layer=2, n_head=2, eos_token_id=7, bos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    policy = Policy(PolicyConfig(path=str(tmp_path)))
    assert policy.shares_prompts
    tokens = grouped([(50, [12, 12]), (8, [40, 40])])
    shared, _ = policy.logprobs(tokens)
    alone, _ = policy.logprobs(plain(tokens))
    torch.testing.assert_close(shared, alone, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_disables_sharing(model_path: str) -> None:
    assert Policy(PolicyConfig(path=model_path)).shares_prompts
    assert not Policy(PolicyConfig(path=model_path, gradient_checkpointing=True)).shares_prompts


def forget(layer: DynamicLayer, rows: torch.Tensor) -> None:
    layer.keys, layer.values = layer.keys.index_select(0, rows) * 0, layer.values.index_select(0, rows) * 0


def detach(layer: DynamicLayer, rows: torch.Tensor) -> None:
    layer.keys = layer.keys.detach().index_select(0, rows)
    layer.values = layer.values.detach().index_select(0, rows)


def refuse(layer: DynamicLayer, rows: torch.Tensor) -> None:
    raise NotImplementedError("no reordering here")


@pytest.mark.parametrize(
    ("reorder", "text"), [(forget, "to other results"), (detach, "to other results"), (refuse, "no reordering here")]
)
def test_a_model_whose_cache_cannot_be_forked_is_detected_and_logged(
    tiny_model: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reorder: Callable[[DynamicLayer, torch.Tensor], None],
    text: str,
) -> None:
    monkeypatch.setattr(DynamicLayer, "reorder_cache", reorder)
    with caplog.at_level(logging.INFO, logger="grpo_lightning"):
        policy = Policy(PolicyConfig(path=tiny_model("llama")))
    assert not policy.shares_prompts
    (message,) = [record.getMessage() for record in caplog.records if "shared_prompts" in record.getMessage()]
    assert message.startswith("shortcut shared_prompts: not used: ")
    assert text in message


# -- whole runs -------------------------------------------------------------------------------------------------------


def count_shared(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    seen: list[bool] = []
    original = Policy.logprobs

    def spy(self: Policy, tokens: TokenRows, *args: Any, **kwargs: Any) -> Any:
        seen.append(tokens.sharing is not None)
        return original(self, tokens, *args, **kwargs)

    monkeypatch.setattr(Policy, "logprobs", spy)
    return seen


@pytest.mark.parametrize("options", [{}, {"beta": 0.1, "updates_per_rollout": 2, "old_logprobs": "recompute"}])
def test_a_run_learns_the_same_weights_with_and_without_sharing(
    model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(passes, "SMALL_PASS", 1)  # the toy's prompts are short
    seen = count_shared(monkeypatch)
    trained, logged = [], []
    for shares in (True, False):
        watch = Watch()
        steps = 2 * options.get("updates_per_rollout", 1)
        without = [] if shares else ["shared_prompts"]
        module = grpo(
            model_path, without=without, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05), **options
        )
        # A different seed: with the default one, rounding changes one sample of the second rollout.
        trained.append(fit(tmp_path, module, steps, rollouts(seed=2), callbacks=[watch]))
        logged.append(watch.logged)
        assert any(seen) == shares
        seen.clear()
    assert not same(*trained)  # rounding shows that they took different paths
    for name, weight in trained[0].items():
        torch.testing.assert_close(weight, trained[1][name], atol=2e-5, rtol=1e-4)
    for one, other in zip(*logged, strict=True):
        for name in ("policy/loss", "policy/entropy", "optim/grad_norm", "policy/update_kl"):
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5)


def test_a_pass_of_a_small_model_is_expensive() -> None:
    found = []
    for size in (32, 512, 2048):
        with torch.device("meta"):
            lm = LlamaForCausalLM(tiny_config("llama", hidden_size=size, intermediate_size=4 * size))
        found.append(pass_overhead(lm.get_decoder(), "cpu"))
    # Without the embedding, the second model's layers and norms have 7.9 million weights: 133 / 7.9 + 9.
    assert found == [64, 25, 10]
    assert pass_overhead(lm.get_decoder(), "cuda") == 2048


def test_a_model_that_uses_tokens_for_more_than_embeddings_does_not_share_prompts() -> None:
    """Falcon-H1 scales the embeddings it looks up itself, but not those passed as inputs."""
    torch.manual_seed(0)
    config = FalconH1Config(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, mamba_d_ssm=16, mamba_n_heads=2, mamba_d_head=8, mamba_d_state=4, mamba_chunk_size=4,
        embedding_multiplier=7.0,
    )  # fmt: skip
    lm = FalconH1ForCausalLM(config).eval()
    rows = grouped([(3, [4, 2])])
    ids_NL = rows.ids_NL % 32
    with torch.no_grad():
        expected_NLD = lm.model(input_ids=ids_NL[:, :-1], use_cache=False).last_hidden_state
        states = predicting_states(lm.model, replace(plain(rows), ids_NL=ids_NL))
    position_M = rows.prompt_lengths_N[states.row_M] + states.place_M - 1
    assert torch.equal(states.hidden_MD, expected_NLD[states.row_M, position_M])
    assert SharedPrompts().why_not(lm) is not None
