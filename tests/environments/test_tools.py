"""Tool calls, tools, and the shipped environments, without a model."""

from __future__ import annotations

import random
from decimal import Decimal

import pytest

from grpo_lightning.environments import Call, GuessNumber, PythonEnvironment, Reply, Step, ToolEnvironment, calculator
from grpo_lightning.environments.base import checked
from grpo_lightning.environments.calls import FORMATS, format_of
from grpo_lightning.errors import ConfigError
from grpo_lightning.types import Prompt

A, B = '{"name": "a", "parameters": {"x": 1}}', '{"name": "b", "parameters": {}}'
TWICE = Call("", error="The tool call gives a name twice.")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_reads_its_example(name: str) -> None:
    parser = FORMATS[name]
    assert parser.calls(parser.example) == [Call("f", {"x": 1})]
    assert parser.calls("No call here.") == []


@pytest.mark.parametrize(
    ("name", "text", "calls"),
    [
        (
            "hermes",
            'Thus <tool_call>{"name": "a", "arguments": {}}</tool_call>\n<tool_call>{"name": "b"}',
            [Call("a"), Call("b")],
        ),
        ("hermes", "<tool_call>{oops</tool_call>", [Call("", error="The tool call is not valid JSON.")]),
        ("hermes", "<tool_call>[1]</tool_call>", None),
        (
            "pythonic",
            "<|tool_call_start|>[a(x='q', n=-1), b()]<|tool_call_end|>",
            [Call("a", {"x": "q", "n": -1}), Call("b")],
        ),
        ("pythonic", "<|tool_call_start|>[a(open('f'))]<|tool_call_end|>", None),
        ("pythonic", "<|tool_call_start|>[a(x=open('f'))]<|tool_call_end|>", None),
        ("llama3", '<|python_tag|>{"name": "a", "parameters": {"x": [1]}}', [Call("a", {"x": [1]})]),
        ("llama3", '{"name": 3}', None),
        ("llama3", f"{A}; {B}", [Call("a", {"x": 1}), Call("b")]),
        ("llama3", f"{A}\n{B}<|eom_id|>", [Call("a", {"x": 1}), Call("b")]),
        ("llama3", f"<|python_tag|>{A}<|eot_id|> \n", [Call("a", {"x": 1})]),
        ("llama3", f"<think>{A}</think>\n{B}", [Call("b")]),
        ("llama3", f"Hm.</think>{B}", [Call("b")]),
        ("llama3", f"<think>{A}", []),
        ("llama3", f"I call {A}", []),
        ("llama3", f"{A} and so on", [Call("a", {"x": 1}), Call("", error="The tool call is not valid JSON.")]),
        ("hermes", f"<think><tool_call>{A}</tool_call></think><tool_call>{B}</tool_call>", [Call("b")]),
        ("hermes", f"<tool_call>{A}</tool_call></think><tool_call>{B}</tool_call>", [Call("b")]),
        ("hermes", f"<think><tool_call>{A}</tool_call>", []),
        (
            "hermes",
            '<tool_call>{"name": "a", "arguments": {"x": "</tool_call><think>"}}</tool_call><tool_call>{"name": "b"}',
            [Call("a", {"x": "</tool_call><think>"}), Call("b")],
        ),
        ("hermes", '<tool_call>{"name": "a", "arguments": "{\\"x\\": 1}"}</tool_call>', [Call("a", {"x": 1})]),
        ("hermes", '<tool_call>{"name": "a", "arguments": null}</tool_call>', [Call("a")]),
        ("hermes", '<tool_call>{"name": "a", "arguments": "x"}</tool_call>', None),
        ("hermes", '<tool_call>{"name": "a", "arguments": "[1]"}</tool_call>', None),
        ("hermes", '<tool_call>{"name": "a", "arguments": [1]}</tool_call>', None),
        ("hermes", f"<tool_call>{A}{B}</tool_call>", None),
        ("hermes", '<tool_call>{"name": "a", "arguments": {"x": 1, "x": 2}}</tool_call>', [TWICE]),
        ("pythonic", "<|tool_call_start|>[a(x=1, x=2)]", [TWICE]),
        (
            "pythonic",
            "<|tool_call_start|>[a(x=true, y=[null], z=False)]",
            [Call("a", {"x": True, "y": [None], "z": False})],
        ),
        ("pythonic", "<|tool_call_start|>[a(x=yes)]", None),
        ("pythonic", "<think><|tool_call_start|>[a()]<|tool_call_end|></think><|tool_call_start|>[b()]", [Call("b")]),
    ],
)
def test_calls_are_read_or_say_what_is_wrong(name: str, text: str, calls: list[Call] | None) -> None:
    found = FORMATS[name].calls(text)
    if calls is None:
        assert len(found) == 1
        assert found[0].error
    else:
        assert found == calls


@pytest.mark.parametrize("name", FORMATS)
def test_no_call_is_read_in_a_thought_that_the_prompt_opened(name: str) -> None:
    parser = FORMATS[name]
    assert parser.calls(parser.example, prompt_end="assistant\n<think>\n") == []
    assert parser.calls(f"x</think>{parser.example}", prompt_end="<think>") == [Call("f", {"x": 1})]
    assert parser.calls(parser.example, prompt_end="</think>") == [Call("f", {"x": 1})]


def test_the_format_is_read_off_the_template() -> None:
    assert format_of("... <tool_call>{...}</tool_call>") == "hermes"
    assert format_of("List of tools: <|tool_list_start|> <|tool_call_start|>") == "pythonic"
    assert format_of('Respond in the format {"name": function name, "parameters": dictionary}') == "llama3"
    assert format_of("{{ messages }}") is None


@pytest.mark.parametrize(
    ("expression", "value"),
    [("12 * (3 + 4)", "84"), ("7/2", "3.5"), ("8/2", "4"), ("-3 % 5", "2"), ("2 // 3 - +1", "-1")],
)
def test_the_calculator_computes(expression: str, value: str) -> None:
    assert calculator(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "1/0", "2**99", "__import__('os')", "", "True", "'a' * 9", "9" * 300, "(" * 150, "1e308*10", "1e999",
        "1e308*10 - 1e308*10",
    ],
)  # fmt: skip
def test_the_calculator_refuses_in_one_sentence(expression: str) -> None:
    with pytest.raises(ValueError, match=r"comput|expression must"):
        calculator(expression)


def broken(x: int) -> int:
    """Break.

    Args:
        x: anything.
    """
    raise OSError("the server is gone")


def test_the_policys_mistakes_are_told_to_it_and_a_broken_tool_is_an_error() -> None:
    environment = ToolEnvironment(["grpo_lightning.environments.calculator", broken], call_reward=-0.1)
    calls = [
        Call("calculator", {"expression": "2+2"}), Call("search", {}), Call("calculator", {"x": 1}),
        Call("", error="Not JSON."), Call("calculator", {"expression": "1/0"}),
    ]  # fmt: skip
    step = environment.step(Reply("", calls))
    said = [message["content"] for message in step.messages]
    assert said[0] == "4"
    assert said[1] == "There is no tool search. The tools are: calculator, broken."
    assert said[2].startswith("Wrong arguments for calculator: missing a required argument")
    assert said[3] == "Not JSON."
    assert said[4].startswith("Error: '1/0' cannot be computed")
    assert {message["role"] for message in step.messages} == {"tool"}
    assert step.reward == pytest.approx(-0.5)
    assert environment.step(Reply("#### 4")) == Step(done=True)
    with pytest.raises(OSError, match="the server is gone"):
        environment.step(Reply("", [Call("broken", {"x": 1})]))


def many(count: int, names: list[str] | None = None, **more: float) -> str:
    """Take several types.

    Args:
        count: a number.
        names: some names.
        more: others.
    """
    return f"{count} {names}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"count": 3}, "3 None"),
        ({"count": 3, "names": ["a"]}, "3 ['a']"),
        ({"count": 3, "names": None, "other": "x"}, "3 None"),
        ({"count": "3"}, 'Wrong arguments for many: count: "3" is not of type "integer".'),
        ({"count": None}, 'Wrong arguments for many: count: null is not of type "integer".'),
        ({"count": 3, "names": [1]}, "Wrong arguments for many: names: "),
    ],
)
def test_an_argument_of_another_type_is_the_policys_mistake(arguments: dict[str, object], said: str) -> None:
    assert ToolEnvironment([many]).run(Call("many", arguments)).startswith(said)


NO_JSON = {"...": ..., "set": {1, 2}, "bytes": b"a", "key": {1: 2}, "complex": 1j, "inner": {"a": {1}}}


@pytest.mark.parametrize("value", NO_JSON.values(), ids=NO_JSON)
def test_a_python_literal_that_json_does_not_have_is_the_policys_mistake(value: object) -> None:
    (call,) = FORMATS["pythonic"].calls(
        f"<|tool_call_start|>[calculator(expression={'...' if value is ... else value})]"
    )
    assert call.arguments == {"expression": value}
    said = ToolEnvironment([calculator]).run(call)
    assert said == "Wrong arguments for calculator: expression: not a JSON value."


@pytest.mark.parametrize("text", [r'"\ud83d"', "[" * 300 + "]" * 300], ids=["half a pair", "deep"])
def test_what_cannot_be_checked_is_the_policys_mistake(text: str) -> None:
    body = f'<tool_call>{{"name": "calculator", "arguments": {{"expression": {text}}}}}</tool_call>'
    (call,) = FORMATS["hermes"].calls(body)
    said = ToolEnvironment([calculator]).run(call)
    assert said == "Wrong arguments for calculator: expression: not a JSON value."


def test_the_python_tool_runs_a_call_for_each_processor_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert PythonEnvironment()._pool.size == 4


def test_tools_that_do_not_exist_are_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"init_args\.tools: give at least one"):
        ToolEnvironment([])
    with pytest.raises(ConfigError, match=r"init_args\.tools: math\.nothing cannot be imported"):
        ToolEnvironment(["math.nothing"])
    with pytest.raises(ConfigError, match=r"init_args\.max_turns: must be above 0, not 0"):
        ToolEnvironment([calculator], max_turns=0)


def test_the_game_of_numbers() -> None:
    game = GuessNumber(max_turns=4)
    game.random = random.Random(0)
    game.reset(Prompt([{"role": "user", "content": "Guess."}], answer="5"))
    said = [game.step(Reply(text)) for text in ("I say 3.", "9", "what?")]
    assert [step.messages[0]["content"] for step in said] == ["higher", "lower", "no number"]
    assert game.step(Reply("5")) == Step(done=True, reward=1.0, info={"guess": 5})
    game.reset(Prompt([], answer="5"))
    last = [game.step(Reply("4")) for _ in range(4)][-1]
    assert (last.done, last.reward) == (True, 0.0)


@pytest.mark.parametrize(
    ("text", "guess"),
    [
        ("5", 5), ("My guess is 42.", 42), ("-5", -5), ("+5!", 5), ("\u22125", -5), ("1,000", 1000), ("007", 7),
        ("Hm...5", 5), ("guess:5, surely", 5), ("5. Yes, 5", 5), ("Is it (12)?", 12), ("turn-5", 5),
        ("5.5", None), (".5", None), ("between 5 and 9", None), ("5-9", None), ("5, 6", None), ("1,00", None),
        ("5/2", None), ("1e3", None), ("4 5.5", None), ("none", None), ("", None),
        ("9" * 5000, None), ("9" * 101, None),
        ("<think>it is between 1 and 100</think> 7", 7), ("between 1 and 100</think>7", 7),
        ("<think>5</think>", None), ("<think>5", None),
    ],
)  # fmt: skip
def test_a_guess_is_one_whole_number_outside_of_thoughts(text: str, guess: int | None) -> None:
    game = GuessNumber()
    game.reset(Prompt([], answer="3000"))
    assert game.step(Reply(text)).info == {"guess": guess}
    if guess is not None:
        game.reset(Prompt([], answer=str(guess)))
        assert game.step(Reply(text)).reward == 1.0


def test_a_thought_that_the_prompt_opened_is_no_guess() -> None:
    game = GuessNumber()
    game.reset(Prompt([], answer="5"))
    assert game.step(Reply("perhaps 5", prompt_end="assistant\n<think>\n")).info == {"guess": None}


@pytest.mark.parametrize(
    "step",
    [
        None, Step(), Step(["text"]), Step([{"role": "user"}]), Step(done=True, reward=float("nan")),
        Step(done=True, reward="1"), Step(done=True, reward=1e8), Step(done=True, info=3),
    ],
)  # fmt: skip
def test_what_is_not_a_step_is_an_error(step: object) -> None:
    with pytest.raises((TypeError, ValueError), match="Game"):
        checked(step, "Game")


def test_a_step_is_made_plain() -> None:
    info = {"turn": 1}
    step = checked(Step(({"role": "user", "content": "a"} for _ in range(2)), reward=Decimal(1), info=info), "Game")
    info["turn"] = 2
    assert step == Step([{"role": "user", "content": "a"}] * 2, reward=1.0, info={"turn": 1})
    assert type(step.reward) is float


def test_half_a_surrogate_pair_of_the_policy_does_not_reach_the_tokenizer() -> None:
    calls = FORMATS["hermes"].calls(r'<tool_call>{"name": "\ud83d", "arguments": {}}</tool_call>')
    (message,) = checked(ToolEnvironment([calculator]).step(Reply("", calls)), "Tools").messages
    assert message == {"role": "tool", "name": "?", "content": "There is no tool ?. The tools are: calculator."}


def test_a_turn_has_a_limited_number_of_calls() -> None:
    environment = ToolEnvironment([calculator], max_calls=2, call_reward=-1.0)
    step = environment.step(Reply("", [Call("calculator", {"expression": "1"})] * 3))
    assert [message["content"] for message in step.messages] == ["1", "1", "Not run: at most 2 calls are run per turn."]
    assert step.reward == -3
    with pytest.raises(ConfigError, match=r"init_args\.max_calls: must be above 0, not 0"):
        ToolEnvironment([calculator], max_calls=0)


def test_the_python_tool_keeps_its_variables_and_is_isolated() -> None:
    environment = PythonEnvironment(timeout_s=0.5, max_output=60, workers=1)
    environment.start()
    said = []
    environment.reset(Prompt([]))
    for code in (
        "x = 20\nprint('once')", "x + 1", "1 / 0", "x += 1; print(x)", "def f(", "open('/etc/passwd').read()",
        "print('y' * 90)", "import sys; sys.exit(3)", "while True: pass",
    ):  # fmt: skip
        said.append(environment.run(Call("python", {"code": code})))
    assert said[:4] == ["once\n", "21\n", "ZeroDivisionError: division by zero\n", "21\n"]
    assert said[4].startswith("  File") or "SyntaxError" in said[4]
    assert "Error" in said[5]
    assert said[6] == "y" * 60 + " [...]"
    assert said[7] == "SystemExit: 3\n"
    assert "longer than the limit" in said[8]
    environment.reset(Prompt([]))
    assert "NameError" in environment.run(Call("python", {"code": "x"}))


@pytest.fixture(scope="module")
def python_tool() -> PythonEnvironment:
    environment = PythonEnvironment(timeout_s=0.5, workers=1)
    environment.start()
    return environment


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["x = 1", "x = 2; import os; os.abort()", "x"], ["", "The program ended before its time.", "1\n"]),
        (["x = 1", "x = 2; import os; os._exit(0)", "x"], ["", "SystemExit: 0\n", "2\n"]),
        (["x = 1", "while True: x += 1", "x"], ["", "The program ran longer than the limit of 0.5 s.", "1\n"]),
        (["x = 1", "x = 2; time.sleep(9)", "x"], ["", "NameError: name 'time' is not defined\n", "2\n"]),
        (["import time; time.sleep(9)", "1"], ["The program ran longer than the limit of 0.5 s.", "1\n"]),
        (["print('\\0')", "print('a\\0b')", "print()"], ["\\0\n", "a\\0b\n", "\n"]),
        (["print('\\ud800')", "'\\ud800'"], ["\\ud800\n", "'\\ud800'\n"]),
        (["import builtins as b; b.print = b.exec = b.repr = b.compile = None", "1 + 1"], ["", "2\n"]),
        (["import ast, io, sys; ast.parse = io.StringIO = sys.stdout = None", "1 + 1"], ["", "2\n"]),
        (["class A: n = 3", "import pickle; pickle.loads(pickle.dumps(A())).n"], ["", "3\n"]),
        (["import os; os.write(1, b'once')", "2"], ["once4\n", "2\n"]),
        (["import atexit; atexit.register(print, 'bye'); 1", "2"], ["1\n", "2\n"]),
    ],
)
def test_no_cell_of_the_python_tool_breaks_the_later_ones(
    python_tool: PythonEnvironment, cells: list[str], said: list[str]
) -> None:
    python_tool.reset(Prompt([]))
    assert [python_tool.run(Call("python", {"code": cell})) for cell in cells] == said


def test_no_call_is_run_after_one_that_did_not_end(python_tool: PythonEnvironment) -> None:
    python_tool.reset(Prompt([]))
    for _ in range(2):
        step = python_tool.step(Reply("", [Call("python", {"code": code}) for code in ("1", "while True: 0", "2")]))
        assert [message["content"] for message in step.messages] == [
            "1\n",
            "The program ran longer than the limit of 0.5 s.",
            "Not run: an earlier call of the turn did not end by itself.",
        ]
