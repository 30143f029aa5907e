"""Log-probs over the allowed tokens alone, against a softmax over these columns and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from grpo_lightning.functional import TokenSets, excluded_tokens, token_logprobs
from grpo_lightning.functional.logprobs import TokenLogprobs

M, D, V = 7, 5, 43
SETS = ([0], [3, 31, 32, 42], list(range(0, V, 2)), list(range(V)))


def packed(sets: tuple[list[int], ...] = SETS) -> Tensor:
    """Bits by hand: bit v % 32 of word v // 32, as a signed number."""
    words = [[sum(1 << (v % 32) for v in tokens if v // 32 == word) for word in range(2)] for tokens in sets]
    return torch.tensor([[word - 2**32 if word >= 2**31 else word for word in row] for row in words]).int()


def test_bits_are_read_from_the_lowest() -> None:
    excluded_SV = excluded_tokens(packed(), V)
    assert [(~row).nonzero()[:, 0].tolist() for row in excluded_SV] == [list(tokens) for tokens in SETS]


def inputs(frozen: bool, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)
        for shape in ((M, D), (V, D), (V,))
    )
    set_M = torch.tensor([1, 0, 3, 2, 1, 1, 2])
    targets_M = torch.tensor([SETS[number][-1] for number in set_M])
    leaves = [hidden.requires_grad_(), weight.requires_grad_(not frozen), bias.requires_grad_(not frozen)]
    return *leaves, targets_M, set_M


def by_columns(
    hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor, targets_M: Tensor, set_M: Tensor, softcap: float | None
) -> TokenLogprobs:
    """Row by row: the softmax of the allowed columns, which never sees another one."""
    logprobs, entropies = [], []
    for row, target in enumerate(targets_M.tolist()):
        tokens = SETS[int(set_M[row])]
        logits = weight_VD[tokens] @ hidden_MD[row] + bias_V[tokens]
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        rows = torch.log_softmax(logits / 0.7, -1)
        logprobs.append(rows[tokens.index(target)])
        entropies.append(-(rows.exp() * rows).sum())
    return TokenLogprobs(torch.stack(logprobs), torch.stack(entropies))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("weigh", [(1.0, 0.0), (0.0, 1.0), (1.0, -0.3)], ids=["logprob", "entropy", "both"])
@pytest.mark.parametrize("keep_probabilities", [False, True])
def test_values_and_gradients_are_those_of_the_allowed_columns(
    frozen: bool, softcap: float | None, weigh: tuple[float, float], keep_probabilities: bool
) -> None:
    hidden, weight, bias, targets_M, set_M = inputs(frozen)

    def with_gradients(result: TokenLogprobs) -> list[Tensor]:
        rows = torch.linspace(-1, 2, M, dtype=torch.float64)
        loss = sum(w * (rows * output).sum() for w, output in zip(weigh, result, strict=True) if w)
        leaves = [leaf for leaf in (hidden, weight, bias) if leaf.requires_grad]
        return [*result, *torch.autograd.grad(loss, leaves)]

    got = with_gradients(
        token_logprobs(
            hidden, weight, targets_M, bias_V=bias, temperature=0.7, softcap=softcap, chunk_size=3,
            keep_probabilities=keep_probabilities, allowed=TokenSets(packed(), set_M),
        )
    )  # fmt: skip
    torch.testing.assert_close(got, with_gradients(by_columns(hidden, weight, bias, targets_M, set_M, softcap)))
    assert got[0][1] == got[1][1] == 0, "the only allowed token is certain"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_lower_precision_nothing_is_infinite(dtype: torch.dtype) -> None:
    hidden, weight, bias, targets_M, set_M = inputs(False, dtype)
    result = token_logprobs(hidden, weight, targets_M, bias_V=bias, softcap=2.0, allowed=TokenSets(packed(), set_M))
    gradients = torch.autograd.grad((result.logprobs_M + 1e10 * result.entropy_M).sum(), (hidden, weight, bias))
    assert all(values.isfinite().all() for values in (*result, *gradients))


def test_a_set_is_needed_for_every_row() -> None:
    hidden, weight, _, targets_M, set_M = inputs(False)
    with pytest.raises(ValueError, match=r"allowed must hold one set for each row of hidden_MD \(7, 5\).* \(6,\)"):
        token_logprobs(hidden, weight, targets_M, allowed=TokenSets(packed(), set_M[1:]))
