"""The tables of ``docs/metrics.md``, made from the declaration; the text around them is written by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from grpo_lightning.curves import SECTIONS, Curve

HEADER = ("| curve | unit | what it is | healthy | if it is not |", "|---|---|---|---|---|")


def table(curves: Iterable[Curve]) -> list[str]:
    """One line per curve, below the header."""
    rows = ([f"`{one.name}`", one.unit, one.meaning, one.healthy, one.otherwise] for one in curves)
    return [*HEADER, *("| " + " | ".join(cells) + " |" for cells in rows)]


def with_tables(text: str) -> str:
    """A page whose tables are replaced by those of the sections that its headings name.

    Raises:
        ValueError: a heading is not a section, or a section has no heading with a table.
    """
    return "\n".join(_lines(text.splitlines())) + "\n"


def _lines(lines: list[str]) -> Iterator[str]:
    missing, section = dict(SECTIONS), ""
    for line in lines:
        if line.startswith("## "):
            section = line.removeprefix("## ")
            if section not in SECTIONS:
                raise ValueError(f"{line!r}: no section of grpo_lightning.curves has this name")
        if not line.startswith("|"):
            yield line
        elif section in missing:
            yield from table(missing.pop(section))
    if missing:
        raise ValueError(f"add a heading and a table (its header line is enough) for: {', '.join(missing)}")
