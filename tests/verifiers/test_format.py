"""FormatVerifier: which forms pass, and that no text makes it slow."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Sample
from grpo_lightning.verifiers import FormatVerifier, judge
from grpo_lightning.verifiers.limited import LimitedWorker
from tests.processes import busy_machine

TAGS = ["think", "answer"]
FORM = "<think>...</think> <answer>...</answer>"


def passes(text: str, verifier: FormatVerifier) -> bool:
    verdict = verifier.verify(Sample("", text))
    assert verdict.error is None
    assert verdict.correct == verdict.format_valid
    assert verdict.correct == (not verdict.feedback)
    return verdict.correct


@pytest.mark.parametrize(
    "text",
    [
        "<think>a</think><answer>b</answer>",
        "\n <think>\na\n\nb</think>\n\n<answer>b</answer>\t\n",
        "<think>1 < 2 and <b>bold</b> </thinking> <THINK> <think ></think><answer>b</answer>",
    ],
)
def test_tags_in_order(text: str) -> None:
    assert passes(text, FormatVerifier(TAGS))


MISPLACED = f"Use each tag exactly once, in this order: {FORM}."
OUTSIDE = f"Write nothing outside of the tags: {FORM}."
TOO_SHORT = f"Write something in each of the tags: {FORM}."


@pytest.mark.parametrize(
    ("text", "feedback"),
    [
        ("", MISPLACED),
        ("b", MISPLACED),
        ("<answer>b</answer>", MISPLACED),
        ("<think>a</think>", MISPLACED),
        ("<answer>b</answer><think>a</think>", MISPLACED),
        ("<think>a<answer>b</answer></think>", MISPLACED),
        ("<think>a</think><answer>b", MISPLACED),
        ("<think>a</think><answer>b</answer><answer>c</answer>", MISPLACED),
        ("<think>a</think><think>a</think><answer>b</answer>", MISPLACED),
        ("<think><think>a</think><answer>b</answer>", MISPLACED),
        ("</think>a<think><answer>b</answer>", MISPLACED),
        ("<Think>a</Think><answer>b</answer>", MISPLACED),
        ("Sure! <think>a</think><answer>b</answer>", OUTSIDE),
        ("<think>a</think> so <answer>b</answer>", OUTSIDE),
        ("<think>a</think><answer>b</answer>.", OUTSIDE),
        ("<think></think><answer>b</answer>", TOO_SHORT),
        ("<think>a</think><answer> \n\u2003</answer>", TOO_SHORT),
    ],
)
def test_tags_that_are_not_as_asked(text: str, feedback: str) -> None:
    verifier = FormatVerifier(TAGS)
    assert not passes(text, verifier)
    assert verifier.verify(Sample("", text)).feedback == feedback


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("Sure! <think>a</think> so <answer>b</answer>.", {"text_outside": True}),
        ("a</think><answer>b</answer>", {"opened_by_prompt": True}),
        ("<think></think><answer> </answer>", {"min_chars": 0}),
    ],
)
def test_options_of_tags_let_more_pass(text: str, options: dict[str, Any]) -> None:
    assert not passes(text, FormatVerifier(TAGS))
    assert passes(text, FormatVerifier(TAGS, **options))


def test_options_of_tags_let_less_pass() -> None:
    text = "<think>ab</think><answer> b </answer>"
    assert passes(text, FormatVerifier(TAGS))
    assert not passes(text, FormatVerifier(TAGS, min_chars=2))
    assert not passes(text, FormatVerifier(TAGS, opened_by_prompt=True))
    assert not passes(text, FormatVerifier(["answer", "think"]))
    assert not passes(text, FormatVerifier(["answer"]))


def test_a_pattern_matches_the_whole_completion() -> None:
    verifier = FormatVerifier(pattern=r"(?s)#### \d+")
    assert passes("#### 42", verifier)
    for text in ("#### 42\n", "so #### 42", "#### 42 apples", "", "#### x"):
        assert not passes(text, verifier)
    assert passes("yes", FormatVerifier(pattern="y|yes")), "not just the first alternative that fits the beginning"
    assert passes("", FormatVerifier(pattern=""))
    verdict = verifier.verify(Sample("", "42"))
    assert verdict.feedback == "The completion does not have the format asked for."


def test_rewards() -> None:
    verifier = FormatVerifier(TAGS, reward_correct=0.2, reward_wrong=-0.1)
    verdicts = [verifier.verify(Sample("", text)) for text in ("<think>a</think><answer>b</answer>", "b")]
    assert [verifier.reward(verdict) for verdict in verdicts] == [0.2, -0.1]


@settings(deadline=None)
@given(
    st.one_of(
        st.text(),
        st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "a", " ", "<"])).map("".join),
    )
)
def test_any_text_gets_a_verdict_and_only_the_form_passes(text: str) -> None:
    # Written another way: split at the tags, and look at what is between.
    pieces = re.split(r"(</?think>|</?answer>)", text)
    expected = (
        pieces[1::2] == ["<think>", "</think>", "<answer>", "</answer>"]
        and not any(piece.strip() for piece in pieces[::4])
        and all(piece.strip() for piece in pieces[2::4])
    )
    assert passes(text, FormatVerifier(TAGS)) == expected
    assert passes(text, FormatVerifier(pattern=r"(?s)\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*")) >= expected


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pattern": r"(a|a)*b"}, "a" * 5000 + "bc"),
        ({"pattern": r"(.*)\1\1x?"}, "ab" * 20_000 + "c"),
        ({"pattern": r".*.*.*x"}, "xy" * 100_000),
        ({"pattern": r"(?i)(\w+\W*)+[!]"}, "ſß" * 10_000 + "!?"),
        ({"tags": TAGS}, "<think>" * 1_000_000),
        ({"tags": TAGS}, "<" * 5_000_000 + "/think>"),
        ({"tags": TAGS}, "<think>" + " " * 5_000_000 + "</think>"),
    ],
)
def test_no_text_makes_it_slow(options: dict[str, Any], text: str) -> None:
    verifier = FormatVerifier(**options)
    # What this process takes; the worker is limited to 0.2 s.
    started = time.process_time()
    assert not passes(text, verifier)
    assert time.process_time() - started < 1


# About half a second in the pattern before its second alternative matches.
SLOW_PATTERN, SLOW_TEXT = r".*.*.*x|(?s).*", "xy" * 3000


def test_the_limit_of_cpu_time_is_an_option() -> None:
    verdict = FormatVerifier(pattern=SLOW_PATTERN, timeout_s=0.01).verify(Sample("", SLOW_TEXT))
    assert not verdict.correct
    assert verdict.explanation is not None
    assert verdict.explanation.reason == "The pattern ran out of CPU time on the completion, which counts as no match."
    assert passes(SLOW_TEXT, FormatVerifier(pattern=SLOW_PATTERN, timeout_s=60.0))
    assert not passes(SLOW_TEXT, FormatVerifier(pattern=r".*.*.*x", timeout_s=60.0))


def test_a_busy_machine_changes_no_verdict() -> None:
    """Half a second of work is far from both limits, 0.01 s and 60 s, of CPU time; the wall clock is not asked."""
    texts = [SLOW_TEXT, "xy", "x" * 50_000, "yx"]
    with busy_machine():
        for pattern, expected in ((SLOW_PATTERN, [True] * 4), (r"(?:xy)*", [True, True, False, False])):
            assert [passes(text, FormatVerifier(pattern=pattern, timeout_s=60.0)) for text in texts] == expected
        assert not passes(SLOW_TEXT, FormatVerifier(pattern=SLOW_PATTERN, timeout_s=0.01))


def test_a_worker_that_dies_is_an_error_and_no_mismatch(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = LimitedWorker(setup="", call="grpo_lightning.verifiers.format:no_such_function")
    monkeypatch.setattr("grpo_lightning.verifiers.format._WORKER", broken)
    verdict = judge(FormatVerifier(pattern=SLOW_PATTERN), [Sample("", SLOW_TEXT)])[0]
    assert verdict.error is not None
    assert "no_such_function" in verdict.error


@pytest.mark.parametrize(
    ("options", "text", "explanation"),
    [
        ({"tags": TAGS}, "<think>a</think><answer>b</answer>", ("", FORM, "The completion has the form.")),
        ({"tags": TAGS}, "b", ("b", FORM, MISPLACED)),
        ({"pattern": r"\d+"}, "42", ("42", r"\d+", "The completion has the form.")),
        ({"pattern": r"\d+"}, "x" * 400, ("x" * 300 + "...", r"\d+", "The pattern does not match the completion.")),
    ],
)
def test_verdicts_explain_themselves(options: dict[str, Any], text: str, explanation: tuple[str, str, str]) -> None:
    extracted, expected, reason = explanation
    assert FormatVerifier(**options).verify(Sample("", text)).explanation == (extracted or text, expected, reason)


def test_it_can_be_pickled() -> None:
    verifier = pickle.loads(pickle.dumps(FormatVerifier(pattern=SLOW_PATTERN, timeout_s=60.0)))
    assert passes(SLOW_TEXT, verifier)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "FormatVerifier: give either tags, such as [think, answer], or a pattern"),
        ({"tags": []}, "FormatVerifier: give either tags, such as [think, answer], or a pattern"),
        ({"tags": TAGS, "pattern": "a"}, "FormatVerifier: give either tags, such as [think, answer], or a pattern"),
        ({"tags": ["<think>"]}, "FormatVerifier.tags: give each name once and without brackets, not '<think>'"),
        ({"tags": ["a", "a"]}, "FormatVerifier.tags: give each name once and without brackets, not 'a'"),
        ({"tags": [""]}, "FormatVerifier.tags: give each name once and without brackets, not ''"),
        ({"tags": ["a|b"]}, "FormatVerifier.tags: give each name once and without brackets, not 'a|b'"),
        ({"pattern": "(a"}, "FormatVerifier.pattern: '(a' is not a regular expression: missing ) at position 2"),
        ({"pattern": "a", "timeout_s": 0}, "FormatVerifier.timeout_s: must be above 0, not 0"),
    ],
)
def test_mistakes_are_one_sentence(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        FormatVerifier(**options)
    assert str(error.value) == text


def test_tags_load_no_other_engine_nor_functions_asyncio() -> None:
    code = (
        "import sys\n"
        "from grpo_lightning.verifiers import FormatVerifier, FunctionVerifier, Sample\n"
        "FormatVerifier(['think']).verify(Sample('', ''))\n"
        "FunctionVerifier('os.path.commonprefix').verify(Sample('', ''))\n"
        "heavy = {'regex', 'torch', 'transformers', 'asyncio'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
