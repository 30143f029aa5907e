"""A verdict depends on the sample alone, not on what else the machine does."""

from __future__ import annotations

from grpo_lightning.types import Sample
from grpo_lightning.verifiers import MathVerifier, judge
from grpo_lightning.verifiers.math.symbolic_client import compare, symbolic_worker
from grpo_lightning.verifiers.math.verifier import EXPRESSIONS_PER_WORKER
from tests.processes import busy_machine

VERDICTS = 25


def samples(count: int) -> list[Sample]:
    """Planes, polynomials, roots, lines and sets; every third answer is wrong."""
    made = []
    for i in range(count):
        a, b, c, d = 2 + i % 7, 3 + i % 11, 5 + i % 13, 4 + i
        e = d if i % 3 else d + 1
        gold, answer = [
            (f"{a}x+{b}y-{c}z+{d}=0", f"-{a}x-{b}y+{c}z-{e}=0"),
            (f"(x+{a})(x-{b})+{d}", f"x^2+{a}x-{b}x-{a * b}+{e}"),
            (f"\\frac{{\\sqrt{{{a}}}}}{{{b}}}+{d}\\pi", f"{e}\\pi+\\frac{{{a}}}{{{b}\\sqrt{{{a}}}}}"),
            (f"y={a}x+{d}", f"{a}x-y+{e}=0"),
            (f"(-\\infty,{a})\\cup[{a + d},\\infty)", f"x<{a} \\text{{ or }} x \\ge {a + e}"),
        ][i % 5]
        made.append(Sample("", f"\\boxed{{{answer}}}", gold))
    return made


def test_verdicts_are_the_same_on_an_idle_and_on_a_busy_machine() -> None:
    verifier = MathVerifier()
    compare.cache_clear()
    idle = verifier.verify_batch(samples(VERDICTS))
    compare.cache_clear()
    with busy_machine():
        busy = verifier.verify_batch(samples(VERDICTS))
    assert [verdict.error for verdict in idle] == [None] * VERDICTS
    assert idle == busy
    assert [verdict.correct for verdict in idle] == [bool(i % 3) for i in range(VERDICTS)]


def test_verdicts_do_not_depend_on_their_order() -> None:
    rows = samples(10)
    compare.cache_clear()
    forward = MathVerifier().verify_batch(rows)
    compare.cache_clear()
    assert MathVerifier().verify_batch(rows[::-1])[::-1] == forward


def test_a_batch_is_judged_in_order_by_several_processes() -> None:
    """Among numbers, and rows without a gold answer, which are errors of their own."""
    verifier = MathVerifier(workers=2)
    rows = samples(3 * EXPRESSIONS_PER_WORKER)
    others = [Sample("", f"#### {i}", "7") for i in range(12)] + [Sample("", "#### 1", None)]
    for place, other in enumerate(others):
        rows.insert(4 * place, other)
    compare.cache_clear()
    verdicts = judge(verifier, rows)
    assert len(symbolic_worker(2).pids) == 2
    assert verdicts == [judge(verifier, [row])[0] for row in rows]
    assert [verdict.error is not None for verdict in verdicts] == [row.answer is None for row in rows]
    right = iter([bool(i % 3) for i in range(3 * EXPRESSIONS_PER_WORKER)])
    assert [verdict.correct for verdict in verdicts] == [
        row.completion == "#### 7" if row in others else next(right) for row in rows
    ]
