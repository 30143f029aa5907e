"""A Python tool in the sandbox, whose variables live as long as the episode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from grpo_lightning.environments.base import Message, Reply, Step
from grpo_lightning.environments.calls import Call
from grpo_lightning.environments.tools import ToolEnvironment
from grpo_lightning.types import Prompt
from grpo_lightning.verifiers.code.sandbox.client import Pool
from grpo_lightning.verifiers.code.sandbox.messages import Request, SandboxOption
from grpo_lightning.verifiers.code.sandbox.probe import choose
from grpo_lightning.verifiers.limited import processors

# Runs the cells in one module, and prints what the last one prints, and the value of an expression at its end. Compiles
# them before one of them runs, and keeps what it needs later: a cell may break the builtins.
_PROGRAM = """
import ast, io, os, sys, traceback, types

def compiled(cell):
    try:
        tree = ast.parse(cell)
        value = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        expression = None if value is None else compile(ast.Expression(value.value), "<cell>", "eval")
        return compile(tree, "<cell>", "exec"), expression, None
    except BaseException as error:
        return None, None, said(error)

def said(error):
    return "".join(traceback.format_exception_only(type(error), error)).strip() + "\\n"

def run(cells, limit, exec=exec, eval=eval, repr=repr, len=len, new=io.StringIO, sys=sys, stdout=sys.stdout, said=said,
        write=os.write, truncate=os.ftruncate, seek=os.lseek, BaseException=BaseException):
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    scope = vars(module)
    for code, expression, mistake in [compiled(cell) for cell in cells]:
        stdout.flush()
        truncate(1, 0)
        seek(1, 0, 0)
        sys.stdout = output = new()
        if mistake is not None:
            output.write(mistake)
            continue
        try:
            exec(code, scope)
            if expression is not None:
                value = eval(expression, scope)
                if value is not None:
                    output.write(repr(value) + "\\n")
        except BaseException as error:
            output.write(said(error))
    stdout.flush()
    text = output.getvalue()
    text = text if len(text) <= limit else text[:limit] + " [...]"
    text = text.replace("\\0", "\\\\0") + "\\0"
    write(1, text.encode("utf-8", "backslashreplace"))
    sys.stdout = stdout

run({cells!r}, {limit})
"""
_END = "\0"
"""Ends the output of the last cell: other code, such as functions registered with ``atexit``, may print after it."""


class PythonEnvironment(ToolEnvironment):
    """Gives the policy a tool ``python(code)``, which runs in the sandbox of ``CodeVerifier``.

    A call returns what the code prints, the value of an expression at its end, or the last line of its traceback. The
    variables of earlier calls are there: each call runs in a new process, after the code of the earlier ones, whose
    output is dropped. So code that draws random numbers, or reads the clock, may find others than before. A call whose
    process died, hung or ran out of time is forgotten, and further calls of its turn are not run.

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
        self.stopped = False
        return row.messages

    def step(self, reply: Reply) -> Step:
        self.stopped = False
        return super().step(reply)

    def message(self, call: Call) -> Message:
        if self.stopped:  # more calls like it would take longer than max_seconds
            content = "Not run: an earlier call of the turn did not end by itself."
            return {"role": "tool", "name": call.name, "content": content}
        return super().message(call)

    def returned(self, tool: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
        cells = [*self.cells, str(arguments["code"])]
        program = _PROGRAM.format(cells=cells, limit=self.max_output)
        result = self._pool.run(Request((program,), io=({"stdin": "", "stdout": ""},)))
        if result.outcome == "error" and "hung" not in result.detail:
            raise RuntimeError(f"the sandbox {result.detail}")
        if "wrong output" not in result.detail:  # the program never got to the end of its output
            self.stopped = True
            return "The program hung." if result.outcome == "error" else result.detail
        self.cells = cells
        return result.given.partition(_END)[0]


def python(code: str) -> str:
    """Run Python code, and return what it prints, or the value of its last line. Variables are kept between calls.

    Args:
        code: the code.
    """
    raise NotImplementedError("PythonEnvironment runs it in the sandbox")
