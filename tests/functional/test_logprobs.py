from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from grpo_lightning.functional.logprobs import TokenLogprobs, token_logprobs

M, D, V = 7, 5, 11


def naive(hidden, weight, targets, *, bias_V=None, temperature=1.0, softcap=None) -> TokenLogprobs:
    logits = torch.nn.functional.linear(hidden, weight, bias_V)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    return TokenLogprobs(logprobs.gather(1, targets[:, None]).squeeze(1), -(logprobs.exp() * logprobs).sum(-1))


def inputs(dtype=torch.float64, frozen=False, bias=True, rows=M, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    hidden = normal(rows, D).requires_grad_()
    weight = normal(V, D).requires_grad_(not frozen)
    bias_V = normal(V).requires_grad_(not frozen) if bias else None
    return hidden, weight, torch.randint(V, (rows,), generator=generator), bias_V


def gradients(function, hidden, weight, targets, bias_V, weigh=(1.0, 0.0), **options):
    """The outputs, and the gradients of a weighted sum of log-probs and entropies, different for every row."""
    result = function(hidden, weight, targets, bias_V=bias_V, **options)
    rows = torch.linspace(-1, 2, len(hidden), dtype=result.logprobs_M.dtype)
    loss = sum(w * (rows * output).sum() for w, output in zip(weigh, result, strict=True) if w)
    leaves = [leaf for leaf in (hidden, weight, bias_V) if leaf is not None and leaf.requires_grad]
    return *result, *torch.autograd.grad(loss, leaves)


def test_values_by_hand():
    # Logits (0, log 3): probabilities 1/4 and 3/4. At temperature 1/2 the logits double: 1/10 and 9/10.
    hidden, weight = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [math.log(3.0)]])
    targets = torch.tensor([0, 1])
    result = token_logprobs(hidden, weight, targets)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    torch.testing.assert_close(result.logprobs_M, torch.tensor([0.25, 0.75]).log())
    torch.testing.assert_close(result.entropy_M, torch.tensor([entropy, entropy]))
    cooled = token_logprobs(hidden, weight, targets, temperature=0.5)
    torch.testing.assert_close(cooled.logprobs_M, torch.tensor([0.1, 0.9]).log())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("weigh", [(1.0, 0.0), (0.0, 1.0), (1.0, -0.3)], ids=["logprob", "entropy", "both"])
def test_equals_log_softmax_and_gather(frozen, bias, softcap, temperature, weigh):
    arguments = inputs(frozen=frozen, bias=bias)
    options = {"softcap": softcap, "temperature": temperature, "weigh": weigh}
    expected = gradients(naive, *arguments, **options)
    got = gradients(token_logprobs, *arguments, **options, chunk_size=3)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradcheck(frozen, softcap):
    hidden, weight, targets, bias_V = inputs(frozen=frozen)

    def function(hidden, weight, bias_V):
        return tuple(token_logprobs(hidden, weight, targets, bias_V=bias_V, chunk_size=4, softcap=softcap))

    assert torch.autograd.gradcheck(function, (hidden, weight, bias_V))


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(0, 9), chunk_size=st.integers(1, 12), frozen=st.booleans(), seed=st.integers(0, 99))
def test_chunk_size_does_not_change_the_result(rows, chunk_size, frozen, seed):
    arguments = inputs(rows=rows, frozen=frozen, seed=seed)
    options = {"weigh": (1.0, 0.5)}
    whole = gradients(token_logprobs, *arguments, **options)
    torch.testing.assert_close(gradients(token_logprobs, *arguments, **options, chunk_size=chunk_size), whole)


@pytest.mark.parametrize("trained", ["hidden", "weight", "bias"])
def test_each_input_may_be_the_only_one_with_a_gradient(trained):
    hidden, weight, targets, bias_V = inputs()
    for name, tensor in {"hidden": hidden, "weight": weight, "bias": bias_V}.items():
        tensor.requires_grad_(name == trained)
    expected = gradients(naive, hidden, weight, targets, bias_V)
    torch.testing.assert_close(gradients(token_logprobs, hidden, weight, targets, bias_V, chunk_size=3), expected)


def test_frozen_head_gets_no_gradient():
    hidden, weight, targets, bias_V = inputs(frozen=True)
    result = token_logprobs(hidden, weight, targets, bias_V=bias_V)
    (result.logprobs_M + result.entropy_M).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
    assert bias_V.grad is None


def test_backward_twice_gives_the_same_gradients():
    for frozen in (False, True):
        hidden, weight, targets, _ = inputs(frozen=frozen)
        loss = token_logprobs(hidden, weight, targets).logprobs_M.sum()
        first = torch.autograd.grad(loss, hidden, retain_graph=True)[0]
        torch.testing.assert_close(first, torch.autograd.grad(loss, hidden)[0])


def test_without_gradients():
    hidden, weight, targets, _ = inputs()
    expected = token_logprobs(hidden, weight, targets)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            result = token_logprobs(hidden, weight, targets)
        assert not result.logprobs_M.requires_grad
        torch.testing.assert_close(result.logprobs_M, expected.logprobs_M.detach())


@pytest.mark.parametrize("chunk_size", [2, 4, 7])
def test_the_last_chunks_logits_are_computed_once(chunk_size):
    class Products(TorchDispatchMode):
        """Counts matrix products."""

        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function in (torch.ops.aten.mm.out, torch.ops.aten.mm.default, torch.ops.aten.addmm_.default)
            return function(*args, **(kwargs or {}))

    hidden, weight, targets, _ = inputs(rows=7, bias=False)
    with Products() as counted:
        token_logprobs(hidden, weight, targets, chunk_size=chunk_size).logprobs_M.sum().backward()
    # One forward and two backward products per chunk, and one more for all chunks but the last.
    chunks = -(-7 // chunk_size)
    assert counted.count == chunks + 2 * chunks + (chunks - 1)


def test_extreme_logits_stay_finite():
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-1.0]], requires_grad=True)
    results = gradients(token_logprobs, hidden, weight, torch.tensor([0, 0]), None, weigh=(1.0, 1.0))
    assert all(tensor.isfinite().all() for tensor in results)
    torch.testing.assert_close(results[0].detach(), torch.tensor([0.0, -2e4]))


# --- precision


@pytest.mark.parametrize("frozen", [False, True])
def test_float32_and_bfloat16_are_close_to_float64(frozen):
    exact = gradients(token_logprobs, *inputs(frozen=frozen), weigh=(1.0, 0.5), chunk_size=3)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        arguments = inputs(dtype, frozen=frozen)
        got = gradients(token_logprobs, *arguments, weigh=(1.0, 0.5), chunk_size=3)
        assert [tensor.dtype for tensor in got[:2]] == [torch.float32, torch.float32]
        assert {tensor.dtype for tensor in got[2:]} == {dtype}
        torch.testing.assert_close(got, exact, rtol=tolerance, atol=tolerance, check_dtype=False)


def test_bfloat16_weight_gradient_is_summed_in_float32():
    # In bfloat16, a sum of 2048 equal terms would stop growing after 256 of them.
    rows = 2048
    hidden, weight = torch.ones(rows, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16)
    weight.requires_grad_()
    token_logprobs(hidden, weight, torch.zeros(rows, dtype=torch.long), chunk_size=1).logprobs_M.sum().backward()
    assert weight.grad.flatten().tolist() == [rows / 2, -rows / 2]  # by hand: (1 - p) and -p, with p = 1/2


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [False, True])
def test_autocast_multiplies_in_bfloat16(hidden_dtype, frozen):
    hidden, weight, targets, bias_V = inputs(torch.float32, frozen=frozen)
    hidden = hidden.detach().to(hidden_dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gradients(token_logprobs, hidden, weight, targets, bias_V, weigh=(1.0, 0.5), chunk_size=3)
        expected = gradients(naive, hidden, weight, targets, bias_V, weigh=(1.0, 0.5))
    torch.testing.assert_close(got[:2], expected[:2], rtol=1e-5, atol=1e-5)  # the same logits, rounded the same way
    torch.testing.assert_close(got[2:], expected[2:], rtol=0.05, atol=0.05)
    assert not torch.equal(got[0], token_logprobs(hidden.float(), weight, targets, bias_V=bias_V).logprobs_M)


@pytest.mark.parametrize("forward_inside", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_backward_keeps_the_precision_of_the_forward(forward_inside, frozen):
    hidden, weight, targets, _ = inputs(torch.float32, frozen=frozen)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=forward_inside):
        loss = token_logprobs(hidden, weight, targets).logprobs_M.sum()
    outside = torch.autograd.grad(loss, hidden, retain_graph=True)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # Rounding to bfloat16 would show in the third digit.
        torch.testing.assert_close(torch.autograd.grad(loss, hidden)[0], outside)


def test_autocast_does_not_affect_float64():
    hidden, weight, targets, _ = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = token_logprobs(hidden, weight, targets)
    assert torch.equal(inside.logprobs_M, token_logprobs(hidden, weight, targets).logprobs_M)


@pytest.mark.cuda
@pytest.mark.parametrize("frozen", [False, True])
def test_cuda_equals_cpu(frozen):
    def on(device: str) -> list[Tensor]:
        arguments = [tensor.detach().to(device) for tensor in inputs()]
        for tensor, learns in zip(arguments, (True, not frozen, False, not frozen), strict=True):
            tensor.requires_grad_(learns)
        rows = torch.linspace(-1, 2, M, dtype=torch.float64, device=device)
        result = token_logprobs(arguments[0], arguments[1], arguments[2], bias_V=arguments[3], chunk_size=3)
        (rows * (result.logprobs_M + 0.5 * result.entropy_M)).sum().backward()
        return [tensor.cpu() for tensor in (*result, *(leaf.grad for leaf in arguments if leaf.requires_grad))]

    torch.testing.assert_close(on("cuda"), on("cpu"))


# --- memory


class LargestTensor(TorchDispatchMode):
    """Records the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for output in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(output, Tensor):
                self.elements = max(self.elements, output.numel())
        return result


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_is_larger_than_a_chunk_or_the_head(frozen, dtype):
    rows, vocabulary, size, chunk_size = 64, 512, 16, 4
    hidden = torch.randn(rows, size, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, size, dtype=dtype, requires_grad=not frozen)
    targets = torch.randint(vocabulary, (rows,))
    with LargestTensor() as largest:
        result = token_logprobs(hidden, weight, targets, chunk_size=chunk_size)
        (result.logprobs_M + 0.1 * result.entropy_M).sum().backward()
    assert largest.elements == vocabulary * size  # W^T is a view of the head; the logits would be 4 times as large

    with LargestTensor() as largest:
        naive(hidden, weight, targets).logprobs_M.sum().backward()
    assert largest.elements == rows * vocabulary


def test_default_chunk_holds_64_mib_of_logits():
    vocabulary = 2**20
    hidden, weight = torch.zeros(40, 1), torch.zeros(vocabulary, 1)
    with LargestTensor() as largest, torch.no_grad():
        token_logprobs(hidden, weight, torch.zeros(40, dtype=torch.long))
    assert largest.elements == 64 * 2**20 // 4


# --- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, but is 0.0"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"softcap": -1.0}, "softcap must be positive"),
        ({"hidden_MD": torch.zeros(M, D + 1)}, "the same second size"),
        ({"hidden_MD": torch.zeros(1, M, D)}, "two-dimensional"),
        ({"targets_M": torch.zeros(M + 1, dtype=torch.long)}, "one token for each row"),
        ({"bias_V": torch.zeros(V + 1)}, "one number for each row"),
        ({"hidden_MD": torch.zeros(M, D, dtype=torch.bfloat16)}, "outside autocast they must be the same"),
    ],
)
def test_bad_arguments(changes, message):
    arguments = {
        "hidden_MD": torch.zeros(M, D),
        "weight_VD": torch.zeros(V, D),
        "targets_M": torch.zeros(M, dtype=torch.long),
    }
    with pytest.raises(ValueError, match=message):
        token_logprobs(**{**arguments, **changes})
