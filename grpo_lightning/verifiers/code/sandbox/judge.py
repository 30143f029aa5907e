"""Runs the tests against a program in another process, and decides. The process ends with its first final verdict."""

from __future__ import annotations

import json
import os
import socket
from typing import Any, NoReturn

from .link import Link, of_the_program
from .plain import builtin_base
from .rowtests import Tests, TestsBroken, read_tests

MAX_RUNS = 200


class Report:
    """Tells the zygote how things stand. The last message counts, so each phase leaves its default.

    A final message also says whether the judge stays for another run.
    """

    def __init__(self, control: socket.socket) -> None:
        self.control = control

    def write(self, outcome: str, detail: str, final: bool, stays: bool = True) -> None:
        message = {"outcome": outcome, "detail": detail[:500], "final": final, "stays": stays}
        self.control.send(json.dumps(message).encode())

    def end(self, outcome: str, detail: str) -> NoReturn:
        """The final word, from wherever it is found. The process ends, so no test can catch it."""
        self.write(outcome, detail, final=True, stays=False)
        os._exit(0)


class Decided(Exception):
    """The outcome and its reason, raised outside of any test."""


def serve(control: socket.socket) -> NoReturn:
    """Judge requests, each a file with the defendant to it, until something goes wrong or the process has had its day.

    Judges live on because a fork costs more than most tests. Programs leave no trace in one, but tests could.
    """
    report = Report(control)
    for run in range(MAX_RUNS):
        _, (payload, channel), _, _ = socket.recv_fds(control, 16, 2)
        with socket.socket(fileno=channel) as connection:
            link = Link(connection, report)
            try:
                outcome, detail = _judge(link, payload)
            except TestsBroken as error:
                outcome, detail = "error", str(error)
            except MemoryError:
                report.end(link.outcome_if_broken, "The program returned too much data.")
        report.write(outcome, detail, final=True, stays=run + 1 < MAX_RUNS)
    os._exit(0)


def _judge(link: Link, payload: int) -> tuple[str, str]:
    with open(payload, "rb") as file:
        request = json.load(file)
    tests = read_tests(request["tests"], request["entry_point"]) if request["tests"] is not None else None
    try:
        link.greet()
        defined = _load(link, request["program"], tests)
        if tests is not None:
            _run_tests(link, tests, defined)
        _run_io(link, request["io"])
    except Decided as decided:
        return decided.args
    return "passed", ""


def _load(link: Link, program: str, tests: Tests | None) -> dict[str, Any]:
    """Load the program, and give what it defines of the names that the tests want."""
    defined: dict[str, Any] = {}
    try:
        if tests is None:
            link.ask("compile", (program,))
        else:
            defined = link.ask("load", (program, sorted(tests.wanted)))
    except SyntaxError as error:
        raise Decided("invalid", f"The program does not compile: {builtin_base(type(error))}.") from None
    except Exception as error:
        raise Decided("invalid", f"The program raised {builtin_base(type(error))} while it was loaded.") from None
    if type(defined) is not dict:
        raise Decided("invalid", "The program returned something unusable.")
    if tests is not None:
        defined = {name: defined[name] for name in tests.wanted & defined.keys()}
        missing = tests.required - defined.keys()
        if missing:
            raise Decided("invalid", f"The program does not define {', '.join(sorted(missing))}.")
    link.outcome_if_broken = "failed"
    link.report.write("failed", "The program used too much memory or processor time.", final=False)
    return defined


def _run_tests(link: Link, tests: Tests, defined: dict[str, Any]) -> None:
    try:
        tests.run(defined)
    except AssertionError as error:
        raise Decided("failed", f"{tests.where(error.__traceback__)} failed.") from None
    except BaseException as error:
        if isinstance(error, MemoryError) and not of_the_program(error):
            raise
        where = tests.where(error.__traceback__)
        raise Decided("failed", f"{where} raised {builtin_base(type(error))}.") from None


def _run_io(link: Link, pairs: list[dict[str, str]]) -> None:
    for number, pair in enumerate(pairs, 1):
        where = f"Input {number} of {len(pairs)}"
        try:
            output = link.ask("run", (pair["stdin"].encode("utf-8", "surrogatepass"),))
        except Exception as error:
            raise Decided("failed", f"{where} raised {builtin_base(type(error))}.") from None
        if type(output) is not bytes or _lines(output.decode("utf-8", "replace")) != _lines(pair["stdout"]):
            raise Decided("failed", f"{where} gave the wrong output.")


def _lines(text: str) -> list[str]:
    """Lines without what cannot be seen: spaces at their ends, empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]
