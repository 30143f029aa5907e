"""What a row's tests call: a function, or a method of a class."""

from __future__ import annotations

import re
from typing import NamedTuple

# Where a function may be found that the program does not define by itself: LeetCode's way.
USUAL_CLASS = "Solution"
# The program as a module, where tests import it.
SOLUTION_MODULE = "solution"

_FORM = re.compile(r"(?:(?P<owner>\w+)(?P<instance>\(\))?\.)?(?P<name>\w+)")


class EntryPoint(NamedTuple):
    """The function under test.

    Args:
        name: the function or method; empty where tests name what they call.
        owner: the class of a method.
        of_instance: whether it is a method of an instance, ``Solution().f``, or of the class itself, ``Solution.f``.
    """

    name: str = ""
    owner: str | None = None
    of_instance: bool = False

    @classmethod
    def read(cls, text: str | None) -> EntryPoint:
        """From ``f``, ``Solution.f`` or ``Solution().f``. Raises: ValueError: it is none of these."""
        if text is None:
            return cls()
        match = _FORM.fullmatch(text)
        if match is None or not all(part is None or part.isidentifier() for part in match.group("owner", "name")):
            raise ValueError(f"{text!r} is not a function's name, such as f, Solution().f or Solution.f")
        return cls(match["name"], match["owner"], match["instance"] is not None)

    @property
    def wanted(self) -> frozenset[str]:
        """The name that the program must define."""
        return frozenset({self.owner or self.name}) - {""}

    def __str__(self) -> str:
        owner = f"{self.owner}{'()' if self.of_instance else ''}." if self.owner else ""
        return owner + self.name
