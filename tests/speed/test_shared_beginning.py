"""The beginning that all prompts share: what it is, when it is run by itself, and what is saved."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from grpo_lightning.models import Policy, PolicyConfig
from grpo_lightning.rollout.engines.decoder import Decoder, DecodingModel
from grpo_lightning.speed.shared_beginning import common_beginning

BEGINNING = list(range(100, 150))


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple), min_size=1, max_size=5))
def test_the_beginning_is_the_longest_that_all_have_before_their_last_token(prompts: list[tuple[int, ...]]) -> None:
    candidates = [prompts[0][:length] for length in range(min(map(len, prompts)))]
    assert common_beginning(prompts) == max(
        (one for one in candidates if all(prompt[: len(one)] == one for prompt in prompts)), key=len
    )


def prefill(path: str, prompts: list[list[int]], **options: list[str]) -> tuple[Decoder, int]:
    """A decoder after its prefill, and the number of tokens, padding included, that went through the model."""
    policy, tokens = Policy(PolicyConfig(path=path, **options)), []
    with policy.rollout_mode():
        model = DecodingModel(policy)
        embedding = policy.lm.get_input_embeddings()
        assert isinstance(embedding, nn.Module)
        embedding.register_forward_hook(lambda _, inputs, output: tokens.append(inputs[0].numel()))
        decoder = Decoder(model, prompts, max_new_tokens=4)
    return decoder, sum(tokens)


@pytest.mark.parametrize("ends", [[7, 7, 3], [3, 2, 1], [40, 9, 1], [1, 1, 1]], ids=str)
def test_the_logits_and_the_next_ones_are_those_of_whole_prompts(
    tiny_model: Callable[[str], str], ends: list[int]
) -> None:
    prompts = [[*BEGINNING, *range(10 * row, 10 * row + count)] for row, count in enumerate(ends)]
    shared, ran = prefill(tiny_model("llama"), prompts)
    whole, ran_whole = prefill(tiny_model("llama"), prompts, without=["shared_beginnings"])
    assert ran <= ran_whole - len(BEGINNING), "all but one row's beginning, and as much more padding at most"
    for _ in range(3):
        torch.testing.assert_close(shared.logits_RV, whole.logits_RV, atol=1e-5, rtol=1e-4)
        for decoder in (shared, whole):
            with torch.no_grad():
                decoder.advance(torch.tensor([5, 6, 7]))


def test_a_short_beginning_is_not_worth_a_pass(tiny_model: Callable[[str], str]) -> None:
    prompts = [[1, 2, 3, 10 + row, 20] for row in range(4)]
    assert prefill(tiny_model("llama"), prompts)[1] == 20
