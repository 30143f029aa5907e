"""The building blocks of a report, and how they are written as Markdown and HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_lightning.commands import charts
from grpo_lightning.commands.compare.figures import inline_svg
from grpo_lightning.commands.compare.interactive import chart_html


@dataclass(frozen=True)
class Heading:
    """A section heading."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; code is written between backticks."""

    text: str


@dataclass(frozen=True)
class Summary:
    """What a reader should know if they read one sentence."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows under a header; the first ``left`` columns are text, all others numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    left: int = 1


@dataclass(frozen=True)
class Figure:
    """``<name>.svg`` and ``<name>.png`` in the report's folder."""

    name: str
    title: str
    caption: str


@dataclass(frozen=True)
class Charts:
    """Interactive charts of the page; in Markdown, a figure."""

    figure: Figure
    caption: str
    data: Mapping[str, Any]


Block = Heading | Text | Summary | Table | Figure | Charts


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """Write a report as Markdown."""
    parts = [f"# {_markdown(title)}"]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"## {_markdown(block.text)}")
        elif isinstance(block, Text | Summary):
            parts.append(_markdown(block.text))
        elif isinstance(block, Table):
            lines = [block.header, ["---"] * block.left + ["---:"] * (len(block.header) - block.left), *block.rows]
            rows = ["| " + " | ".join(_markdown(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]
            parts += ["\n".join(rows), _markdown(block.caption)]
        else:
            figure = block.figure if isinstance(block, Charts) else block
            parts += [f"![{figure.title}]({figure.name}.svg)", _markdown(figure.caption)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(text: str) -> str:
    """Put text on one line and escape it for Markdown, except code between backticks."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.splitlines()))
    return "".join(part if index % 2 else _escaped(part) for index, part in enumerate(parts))


def _escaped(text: str) -> str:
    # "<" and "&" that do not begin a tag or an entity need no escape: "p < 0.001".
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text.replace("\\", "\\\\"))
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)


def page(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """Write a report as one self-contained HTML file, with styles, figures and charts inline."""
    parts = [f"<h1>{_inline(title)}</h1>"]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"<h2>{_inline(block.text)}</h2>")
        elif isinstance(block, Text):
            parts.append(f"<p>{_inline(block.text)}</p>")
        elif isinstance(block, Summary):
            parts.append(f'<p class="summary">{_inline(block.text)}</p>')
        elif isinstance(block, Table):
            parts.append(_table(block))
        elif isinstance(block, Charts):
            caption = f"<figcaption>{_inline(block.caption)}</figcaption>"
            parts.append(f"<figure>{chart_html(block.data)}{caption}</figure>")
        else:
            picture = inline_svg(folder / f"{block.name}.svg", html.escape(block.title, quote=True))
            caption = f"<figcaption>{_inline(block.caption)}</figcaption>"
            parts.append(f'<figure><div class="wide">{picture}</div>{caption}</figure>')
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{charts.style()}{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def _table(table: Table) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(_cell(cell, tag, index >= table.left) for index, cell in enumerate(cells)) + "</tr>"

    rows = "\n".join(line(row, "td") for row in table.rows)
    caption = f"<p class=caption>{_inline(table.caption)}</p>" if table.caption else ""
    head = line(table.header, "th")
    return f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody></table></div>{caption}'


def _cell(text: str, tag: str, number: bool) -> str:
    if not number:
        return f"<{tag}>{_inline(text)}</{tag}>"
    # Allow a line break after a comma, but not between a number and its unit.
    parts = [part.replace(" ", "&nbsp;") for part in _inline(text).split(", ")] if tag == "td" else [_inline(text)]
    return f'<{tag} class="number">{", ".join(parts)}</{tag}>'


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --ground: #fff; --line: #d1d9e0; --stripe: #f6f8fa }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9aa4ae; --ground: #0d1117; --line: #3d444d; --stripe: #151b23 }
}
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem }
h1 { font-size: 1.7rem; line-height: 1.25 } h2 { font-size: 1.25rem; margin-top: 2.2rem }
/* Shadows at the edges of what can be scrolled sideways. */
.wide { overflow-x: auto; background:
  linear-gradient(90deg, var(--ground) 30%, transparent) 0 0 / 40px 100% no-repeat local,
  linear-gradient(270deg, var(--ground) 30%, transparent) 100% 0 / 40px 100% no-repeat local,
  linear-gradient(90deg, #8886, transparent) 0 0 / 14px 100% no-repeat scroll,
  linear-gradient(270deg, #8886, transparent) 100% 0 / 14px 100% no-repeat scroll }
.wide svg { min-width: 44rem } table { border-collapse: collapse; font-size: .9rem }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
th { vertical-align: bottom } td:first-child { min-width: 11rem }
.number { text-align: right; font-variant-numeric: tabular-nums }
.summary { font-size: 1.1rem; border-left: 4px solid #0072B2; padding-left: .8rem }
.buttons { display: flex; flex-wrap: wrap; gap: .4rem; margin-bottom: .6rem }
button { font: inherit; font-size: .88rem; color: inherit; background: var(--stripe); border: 1px solid var(--line);
  border-radius: 6px; padding: .25rem .6rem; cursor: pointer; text-align: left }
#axes [aria-pressed="true"] { border-color: #0072B2; box-shadow: inset 0 0 0 1px #0072B2 }
#legend [aria-pressed="false"] { opacity: .45; text-decoration: line-through }
.swatch { display: inline-block; width: 1.6rem; margin-right: .45rem; vertical-align: middle }
#panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1rem }
.tip { position: absolute; top: 6px; pointer-events: none; padding: .3rem .5rem; border-radius: 6px; font-size: .75rem;
  background: var(--ground); border: 1px solid var(--line); width: max-content; max-width: min(75%, 20rem); z-index: 2;
  display: none }
.tip div { overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.u-over:hover .tip:not(:empty) { display: block }
@media (max-width: 600px) { main { padding: 1rem .8rem } td:first-child { min-width: 8rem } h1 { font-size: 1.4rem } }
figure { margin: 1.5rem 0 } figure svg { width: 100%; height: auto; color: var(--soft) }
figcaption, .caption { color: var(--soft); font-size: .88rem; max-width: 60rem }
code { font-size: .88em; background: var(--stripe); padding: .1em .3em; border-radius: 4px; overflow-wrap: anywhere }
"""
