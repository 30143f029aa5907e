"""A Python tool in the sandbox, whose variables live as long as the episode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from grpo_lightning.environments.base import Message
from grpo_lightning.environments.tools import ToolEnvironment
from grpo_lightning.types import Prompt
from grpo_lightning.verifiers.code.sandbox.client import Pool
from grpo_lightning.verifiers.code.sandbox.messages import Request, SandboxOption
from grpo_lightning.verifiers.code.sandbox.probe import choose
from grpo_lightning.verifiers.limited import processors

# Runs the cells in one namespace, and prints what the last one prints, and the value of an expression at its end.
_PROGRAM = """
import ast, contextlib, io, traceback

def run(cells, limit):
    scope = {{"__name__": "__main__"}}
    for cell in cells:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            try:
                tree = ast.parse(cell)
                value = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
                exec(compile(tree, "<cell>", "exec"), scope)
                if value is not None:
                    value = eval(compile(ast.Expression(value.value), "<cell>", "eval"), scope)
                    if value is not None:
                        print(repr(value))
            except BaseException as error:
                print("".join(traceback.format_exception_only(type(error), error)).strip())
    text = output.getvalue()
    print(text if len(text) <= limit else text[:limit] + " [...]", end="")

run({cells!r}, {limit})
"""
_NOT_PRINTED = "\0"
"""What no cell may print: so that the sandbox shows what it printed instead."""


class PythonEnvironment(ToolEnvironment):
    """Gives the policy a tool ``python(code)``, which runs in the sandbox of ``CodeVerifier``.

    A call returns what the code prints, the value of an expression at its end, or the last line of its traceback. The
    variables of earlier calls are there: each call runs in a new process, after the code of the earlier ones, whose
    output is dropped. So code that draws random numbers, or reads the clock, may find others than before.

    Args:
        timeout_s: limit on the processor time of a call, with that of the earlier code.
        memory_mb: address space of the process.
        sandbox: the isolation level, as for ``CodeVerifier``.
        workers: calls that run at the same time; by default, one for each processor and one more.
        max_output: characters of the output that the policy reads.
        call_reward: added to the reward of a turn for every call in it.
        options: options of :class:`Environment`.
    """

    def __init__(
        self,
        timeout_s: float = 2.0,
        memory_mb: int = 512,
        sandbox: SandboxOption = "auto",
        workers: int | None = None,
        max_output: int = 1000,
        call_reward: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__([python], call_reward, **options)
        self.max_output = max_output
        self._pool = Pool(partial(choose, sandbox, timeout_s, memory_mb), workers or processors() + 1)

    def start(self) -> None:
        """Start the sandbox.

        Raises:
            SandboxUnavailable: the level asked for is not available here, or does not hold.
        """
        self._pool.start()

    def reset(self, row: Prompt) -> Sequence[Message]:
        self.cells: list[str] = []
        return row.messages

    def returned(self, tool: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
        self.cells.append(str(arguments["code"]))
        program = _PROGRAM.format(cells=self.cells, limit=self.max_output)
        result = self._pool.run(Request((program,), io=({"stdin": "", "stdout": _NOT_PRINTED},)))
        if result.outcome == "error":
            raise RuntimeError(f"the sandbox {result.detail}")
        return result.given if "wrong output" in result.detail else result.detail


def python(code: str) -> str:
    """Run Python code, and return what it prints, or the value of its last line. Variables are kept between calls.

    Args:
        code: the code.
    """
    raise NotImplementedError("PythonEnvironment runs it in the sandbox")
