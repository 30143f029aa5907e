"""Gradients accumulated in place, compared with autograd's."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from grpo_lightning.functional import InPlaceEmbedding, adding_in_place, token_logprobs

V, D = 40, 6
IDS = [torch.tensor([[1, 2, 3, 3], [3, 9, 0, 39]]), torch.tensor([[5, 5, 1], [0, 0, 7]])]


def vocabulary(
    dtype: torch.dtype = torch.float32, padding_id: int | None = None, kind: type[nn.Embedding] = InPlaceEmbedding
) -> nn.Embedding:
    torch.manual_seed(0)
    return kind(V, D, padding_idx=padding_id, dtype=dtype)


def loss_of(embedding: nn.Embedding, head_VD: Tensor, ids: Tensor) -> Tensor:
    hidden_MD = embedding(ids[:, :-1]).flatten(0, 1).tanh()
    result = token_logprobs(hidden_MD, head_VD, ids[:, 1:].flatten(), chunk_size=2)
    return (torch.linspace(-1, 2, len(hidden_MD)) * result.logprobs_M).sum()


def gradients(tied: bool, way: AbstractContextManager[Any], **options: Any) -> list[Tensor]:
    embedding = vocabulary(**options)
    head = embedding.weight if tied else nn.Parameter(torch.randn(V, D, dtype=embedding.weight.dtype))
    with way:
        for ids in IDS:
            loss_of(embedding, head, ids).backward()
    found = [weight.grad for weight in (embedding.weight, head)]
    assert found[0] is not None
    assert found[1] is not None
    return [found[0], found[1]]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding_id", [None, 0, 3])
def test_gradients_equal_those_of_autograd(tied: bool, dtype: torch.dtype, padding_id: int | None) -> None:
    options = {"dtype": dtype, "padding_id": padding_id}
    expected = gradients(tied, nullcontext(), **options)
    tolerance = 1e-6 if dtype is torch.float32 else 0.02
    torch.testing.assert_close(gradients(tied, adding_in_place(), **options), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("padding_id", [None, 3])
def test_an_embedding_equals_torchs(padding_id: int | None) -> None:
    own, plain = (vocabulary(padding_id=padding_id, kind=kind) for kind in (InPlaceEmbedding, nn.Embedding))
    weigh = torch.randn(2, 4, D)
    assert torch.equal(own(IDS[0]), plain(IDS[0]))
    for embedding in (own, plain):
        (embedding(IDS[0]) * weigh).sum().backward()
    assert own.weight.grad is not None
    assert plain.weight.grad is not None
    assert torch.equal(own.weight.grad, plain.weight.grad)
    with torch.no_grad():
        assert torch.equal(own(IDS[0]), plain(IDS[0]))


def test_outside_the_context_gradients_are_returned() -> None:
    embedding = vocabulary()
    loss = loss_of(embedding, embedding.weight, IDS[0])
    (gradient,) = torch.autograd.grad(loss, embedding.weight)
    assert gradient.any()
    assert embedding.weight.grad is None


def test_a_hook_sees_the_whole_gradient() -> None:
    (expected, _) = gradients(True, nullcontext())
    for register in ("register_hook", "register_post_accumulate_grad_hook"):
        embedding, seen = vocabulary(), 0

        def hook(found: Tensor) -> None:
            nonlocal seen
            seen += 1

        getattr(embedding.weight, register)(hook)
        with adding_in_place():
            for ids in IDS:
                loss_of(embedding, embedding.weight, ids).backward()
        assert seen == 2
        torch.testing.assert_close(embedding.weight.grad, expected)


class LargeTensors(TorchDispatchMode):
    """Counts the allocated tensors that are as large as the vocabulary."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, Tensor)}
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.shape == (V, D):
            self.count += result.untyped_storage().data_ptr() not in before
        return result


@pytest.mark.parametrize("in_place", [False, True])
def test_all_uses_share_one_gradient(in_place: bool) -> None:
    with LargeTensors() as large:
        embedding = vocabulary()
        large.count = 0
        with adding_in_place() if in_place else nullcontext():
            for ids in IDS:
                loss_of(embedding, embedding.weight, ids).backward()
    assert large.count == 1 if in_place else large.count >= 4


@pytest.mark.parametrize("changes", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}])
def test_it_replaces_only_plain_embeddings(changes: dict[str, Any]) -> None:
    assert InPlaceEmbedding.replaces(nn.Embedding(V, D, padding_idx=1))
    assert not InPlaceEmbedding.replaces(nn.Embedding(V, D, **changes))
    assert not InPlaceEmbedding.replaces(nn.Linear(V, D))
    assert not InPlaceEmbedding.replaces(vocabulary())
