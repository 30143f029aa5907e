"""CodeVerifier and its wire against whatever hypothesis thinks of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from code_cases import verdict_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpo_lightning.types import Sample
from grpo_lightning.verifiers import CodeVerifier, judge
from grpo_lightning.verifiers.code.fences import program_blocks
from grpo_lightning.verifiers.code.sandbox import wire
from grpo_lightning.verifiers.code.sandbox.plain import PLAIN_TYPES, BadFrame, record_type


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    verifier = CodeVerifier(workers=1, timeout_s=1.0)
    yield verifier
    verifier.stop()


def any_text() -> st.SearchStrategy[str]:
    return st.text(st.characters(), max_size=20)  # lone surrogates, too


def hashable() -> st.SearchStrategy[Any]:
    leaves = st.one_of(
        st.none(), st.booleans(), st.integers(), st.integers(-(2**200), 2**200), st.floats(), st.complex_numbers(),
        any_text(), st.binary(max_size=20), st.builds(range, st.integers(-9, 9), st.integers()),
    )  # fmt: skip
    return st.recursive(leaves, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5)


def plain() -> st.SearchStrategy[Any]:
    return st.recursive(
        hashable() | st.sets(hashable(), max_size=3),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hashable(), inner, max_size=4) | st.tuples(inner),
        max_leaves=12,
    )


def refuse(reference: object) -> object:
    raise BadFrame("no references here")


def passed_on(value: object) -> Any:
    return wire.Decoder(refuse, []).value(wire.Encoder(lambda value: None, []).frame(value)[4:])


def identical(one: Any, other: Any) -> bool:
    """Equal with exact types, where NaN is equal to itself and 0.0 is not -0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    if isinstance(one, complex):
        return identical(one.real, other.real) and identical(one.imag, other.imag)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(identical, one, other))
    if isinstance(one, dict):
        return identical(list(one), list(other)) and identical(list(one.values()), list(other.values()))
    if isinstance(one, (set, frozenset)):
        return len(one) == len(other) and all(any(identical(a, b) for b in other) for a in one)
    return repr(one) == repr(other)


@given(plain())
def test_plain_data_arrives_as_it_was_sent(value: Any) -> None:
    assert identical(passed_on(value), value)


@given(st.lists(st.lists(st.integers(), max_size=2), min_size=1, max_size=4))
def test_shared_and_cyclic_containers_stay_so(rows: list[Any]) -> None:
    rows += [rows[0], {"rows": rows}]
    received = passed_on(rows)
    assert received[-2] is received[0]
    assert received[-1]["rows"] is received


@given(st.binary(max_size=200))
def test_random_bytes_are_plain_data_or_a_bad_frame(data: bytes) -> None:
    try:
        value = wire.Decoder(refuse, []).value(data)
    except BadFrame:
        return
    assert type(value) in PLAIN_TYPES or type(value) is record_type(value._fields)


@given(plain(), st.integers(0, 10_000), st.integers(0, 255))
def test_a_spoiled_frame_is_plain_data_or_a_bad_frame(value: Any, place: int, byte: int) -> None:
    data = bytearray(wire.Encoder(lambda value: None, []).frame(value)[4:])
    data[place % len(data)] = byte
    test_random_bytes_are_plain_data_or_a_bad_frame.hypothesis.inner_test(bytes(data))  # type: ignore[attr-defined]


@given(st.lists(st.sampled_from(["```python\n", "```", "\n", "x = 1", "<think>", "</think>", "~~~", " ", "é\ud800"])))
def test_extraction_never_raises(pieces: list[str]) -> None:
    assert all(block.strip() for block in program_blocks("".join(pieces)))


ALPHABET = [
    "def f(x):\n    ",
    "return ",
    "x",
    " + ",
    "1",
    "\n",
    "yield ",
    "[",
    "]",
    "raise ",
    "import os\n",
    "(",
    ")",
    "0",
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(any_text() | st.lists(st.sampled_from(ALPHABET), max_size=12).map("".join))
def test_any_completion_gets_the_same_verdict_twice(verifier: CodeVerifier, completion: str) -> None:
    sample = Sample("", completion, metadata={"tests": "assert f(1) == 2\nassert f('a') == 'b'"})
    first, second = judge(verifier, [sample, sample])
    assert first == second
    assert first.error is None
    assert not first.correct


def literals() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text()
    return st.recursive(
        leaves, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(leaves, inner)
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(literals())
def test_a_program_gets_what_the_tests_pass_and_they_what_it_returns(verifier: CodeVerifier, value: Any) -> None:
    tests = f"value = {value!r}\nassert repr(f(value)) == repr(value)\nassert f(value) == value"
    assert verdict_of(verifier, f"def f(x):\n    assert repr(x) == {repr(value)!r}\n    return x", tests).correct


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(10**6, 10**9), st.sampled_from(["return 0", "raise ValueError(x)", "return x", "return [x] * 9", "1/0"])
)
def test_the_feedback_never_holds_the_expected_value(verifier: CodeVerifier, gold: int, body: str) -> None:
    verdict = verdict_of(verifier, f"def f(x):\n    {body}", f"assert f({gold + 1}) == {gold}")
    assert not verdict.correct
    assert str(gold) not in verdict.feedback
    assert str(gold + 1) not in verdict.feedback
