"""Runs the tests against a program in another process, and decides. The process ends with its first final verdict."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any, NoReturn

from . import outputs
from .entry_point import USUAL_CLASS, EntryPoint
from .link import Link, of_the_program
from .plain import builtin_base
from .rowtests import Failure, Tests, TestsBroken, read_tests

MAX_RUNS = 200
_MAX_SHOWN = 2000
_NO_FAILURE = Failure("A test", "", "", "")


class Report:
    """Tells the zygote how things stand. The last message counts, so each phase leaves its default.

    A final message also says whether the judge stays for another run.
    """

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.blocks: tuple[int, ...] = ()

    def write(
        self,
        outcome: str,
        detail: str,
        final: bool,
        stays: bool = True,
        before_s: float | None = None,
        late: bool = False,
        has_ended: bool = False,
        failure: Failure = _NO_FAILURE,
    ) -> None:
        # Only what is set: this is written three times in each run.
        message: dict[str, object] = {"outcome": outcome, "detail": detail[:500], "final": final}
        if before_s is not None:
            message["before_s"] = before_s
        if final:
            message |= {"stays": stays, "late": late, "has_ended": has_ended}
        if self.blocks:
            message["blocks"] = self.blocks
        if failure is not _NO_FAILURE:
            texts = {"test": failure.source, "given": failure.given, "expected": failure.expected}
            message |= {name: text[:_MAX_SHOWN] for name, text in texts.items()}
        self.control.send(json.dumps(message).encode())

    def end(self, outcome: str, detail: str, late: bool = False, has_ended: bool = False) -> NoReturn:
        """The final word, from wherever it is found. The process ends, so no test can catch it.

        Args:
            outcome: as for :class:`.messages.Result`.
            detail: likewise.
            late: the program used up its time.
            has_ended: its process is gone.
        """
        self.write(outcome, detail, final=True, stays=False, late=late, has_ended=has_ended)
        os._exit(0)


class Decided(Exception):
    """The outcome and its reason, raised outside of any test."""

    def __init__(self, outcome: str, detail: str, failure: Failure = _NO_FAILURE) -> None:
        super().__init__(outcome, detail)
        self.outcome, self.detail, self.failure = outcome, detail, failure


def serve(control: socket.socket) -> NoReturn:
    """Judge requests, each a file with the defendant to it, until something goes wrong or the process has had its day.

    Judges live on because a fork costs more than most tests. Programs leave no trace in one, but tests could.
    """
    report = Report(control)
    for run in range(MAX_RUNS):
        _, (payload, channel), _, _ = socket.recv_fds(control, 16, 2)
        report.blocks = ()
        with socket.socket(fileno=channel) as connection:
            link = Link(connection, report)
            try:
                _judge(link, payload)
                decided = Decided("passed", "")
            except Decided as error:
                decided = error
            except TestsBroken as error:
                decided = Decided("error", str(error))
            except MemoryError:
                report.end(link.outcome_if_broken, "The program returned too much data.")
        stays = run + 1 < MAX_RUNS
        report.write(decided.outcome, decided.detail, final=True, stays=stays, failure=decided.failure)
    os._exit(0)


def _judge(link: Link, payload: int) -> None:
    """Run the program of a request under its tests and calls.

    Raises:
        Decided: the program is not right.
        TestsBroken: the row's tests can judge no program.
    """
    with open(payload, "rb") as file:
        request = json.load(file)
    entry_point = EntryPoint.read(request["entry_point"])
    tests = read_tests(request["tests"], entry_point) if request["tests"] is not None else None
    wanted = tests.wanted if tests else entry_point.wanted if request["calls"] else frozenset()
    required = tests.required if tests else wanted
    used_s = link.greet()
    if request["prelude"] is not None:
        used_s = _prepare(link, request["prelude"])
    link.outcome_if_broken = "invalid"
    too_much = "The program used too much memory while it was loaded."
    link.report.write("invalid", too_much, final=False, before_s=used_s + time.process_time())
    is_script = bool(request["io"])
    if wanted:
        defined = _load(link, request["blocks"], wanted, required, is_script)
        candidate = _candidate(link, defined, entry_point) if entry_point.name else None
    else:
        _take(link, request["blocks"], is_script)
    link.outcome_if_broken = "failed"
    link.report.write("failed", "The program used too much memory.", final=False)
    allowance = outputs.Allowance(request["rel_tol"], request["abs_tol"])
    if tests is not None:
        _run_tests(link, tests, defined, candidate)
    if request["calls"]:
        _run_calls(candidate, request["calls"], allowance)
    _run_io(link, request["io"], allowance)


def _prepare(link: Link, prelude: str) -> float:
    """Let the prelude run once: what it raises is not a program's fault, since none has run yet."""
    try:
        return float(link.ask("prepare", (prelude,)))
    except Exception as error:
        raise TestsBroken(f"the prelude raised {builtin_base(type(error))}") from None


def _take(link: Link, blocks: list[str], is_script: bool) -> None:
    """Have the program chosen from the completion's blocks, and compiled."""
    try:
        _note_blocks(link, link.ask("take", (blocks, [], is_script)), len(blocks))
    except Exception as error:
        raise Decided("invalid", f"The program does not compile: {builtin_base(type(error))}.") from None


def _note_blocks(link: Link, numbers: object, count: int) -> None:
    """Remember which blocks were taken, where it is not all of them."""
    if type(numbers) is tuple and set(map(type, numbers)) == {int} and len(numbers) < count:
        link.report.blocks = numbers


def _load(
    link: Link, blocks: list[str], wanted: frozenset[str], required: frozenset[str], is_script: bool
) -> dict[str, Any]:
    """Have the program chosen, compiled and loaded, and give what it defines of the names that the tests want."""
    try:
        loaded: Any = link.ask("load", (blocks, sorted(wanted), is_script, sorted(wanted - required)))
    except SyntaxError as error:
        raise Decided("invalid", f"The program does not compile: {builtin_base(type(error))}.") from None
    except Exception as error:
        raise _not_loaded(error) from None
    if type(loaded) is not tuple or len(loaded) != 2 or type(loaded[1]) is not dict:
        raise Decided("invalid", "The program returned something unusable.")
    numbers, defined = loaded
    _note_blocks(link, numbers, len(blocks))
    missing = required - defined.keys()
    if missing and USUAL_CLASS in defined:
        solution = _member(defined[USUAL_CLASS], None)
        methods = {name: _member(solution, name) for name in sorted(missing)}
        defined |= {name: method for name, method in methods.items() if method is not None}
        missing = required - defined.keys()
    if missing:
        raise Decided("invalid", f"The program does not define {', '.join(sorted(missing))}.")
    return {name: defined[name] for name in wanted & defined.keys()}


def _candidate(link: Link, defined: dict[str, Any], entry_point: EntryPoint) -> Any:
    """The function under test."""
    if entry_point.owner is None:
        return defined[entry_point.name]
    owner = defined[entry_point.owner]
    if entry_point.of_instance:
        owner = _member(owner, None)
    candidate = None if owner is None else _member(owner, entry_point.name)
    if candidate is None:
        raise Decided("invalid", f"The program does not define {entry_point}.")
    return candidate


def _member(owner: Any, name: str | None) -> Any:
    """An attribute, ``None`` where there is none; without a name, an instance of the class."""
    try:
        return owner() if name is None else getattr(owner, name)
    except (AttributeError, TypeError):
        return None
    except Exception as error:
        raise _not_loaded(error) from None


def _not_loaded(error: BaseException) -> Decided:
    return Decided("invalid", f"The program raised {builtin_base(type(error))} while it was loaded.")


def _run_tests(link: Link, tests: Tests, defined: dict[str, Any], candidate: Any) -> None:
    try:
        tests.run(defined, candidate)
    except TestsBroken:
        raise
    except AssertionError as error:
        failure = tests.failure(error.__traceback__)
        name = link.name_of_type(failure.uncompared) if failure.uncompared is not None else ""
        hint = f" The program gave an object of type {name}, which equals no plain data." if name else ""
        raise Decided("failed", f"{failure.where} failed.{hint}", failure) from None
    except BaseException as error:
        if isinstance(error, MemoryError) and not of_the_program(error):
            raise
        failure = tests.failure(error.__traceback__)
        kind = builtin_base(type(error))
        raise Decided("failed", f"{failure.where} raised {kind}.", failure._replace(given=f"{kind} raised")) from None


def _run_calls(candidate: Any, calls: list[dict[str, Any]], allowance: outputs.Allowance) -> None:
    for number, call in enumerate(calls, 1):
        where = f"Call {number} of {len(calls)}"
        read = outputs.with_number_keys if call["number_keys"] else list
        arguments, accepted = read(call["arguments"]), read(call["accepted"])
        text = ", ".join(map(outputs.shown, arguments))
        failure = Failure(where, f"the call with ({text})", "", outputs.shown(accepted[0]))
        try:
            given = candidate(*arguments)
        except Exception as error:
            kind = builtin_base(type(error))
            raise Decided("failed", f"{where} raised {kind}.", failure._replace(given=f"{kind} raised")) from None
        if not any(allowance.same_value(given, expected) for expected in accepted):
            failure = failure._replace(given=outputs.shown(given))
            raise Decided("failed", f"{where} gave the wrong result.", failure)


def _run_io(link: Link, pairs: list[dict[str, str]], allowance: outputs.Allowance) -> None:
    for number, pair in enumerate(pairs, 1):
        where = f"Input {number} of {len(pairs)}"
        failure = Failure(where, f"the input {pair['stdin']!r}", "", pair["stdout"])
        try:
            output = link.ask("run", (pair["stdin"].encode("utf-8", "surrogatepass"),))
        except Exception as error:
            kind = builtin_base(type(error))
            raise Decided("failed", f"{where} raised {kind}.", failure._replace(given=f"{kind} raised")) from None
        text = output.decode("utf-8", "replace") if type(output) is bytes else None
        if text is None or not allowance.same_output(text, pair["stdout"]):
            raise Decided("failed", f"{where} gave the wrong output.", failure._replace(given=text or ""))
