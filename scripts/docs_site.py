"""Hooks of mkdocs: pages that are elsewhere in the repository or are generated, and links to them.

``README.md`` is the home page. A source file that a page links to becomes a page with its text, so that the site is
whole without a network. The reference of options is made from the table of the command line.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
}
"""Pages of the site by their files outside of ``docs``."""

LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".jinja": "jinja", ".toml": "toml"}
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that ``docs`` does not hold."""
    from mkdocs.structure.files import File

    pages = {page: linked((ROOT / source).read_text(encoding="utf-8"), source) for source, page in PAGES.items()}
    pages["reference/options.md"] = options_page()
    written = {
        f"docs/{file.src_uri}": (ROOT / "docs" / file.src_uri).read_text("utf-8")
        for file in files.documentation_pages()
    }
    outside = {source: (ROOT / source).read_text("utf-8") for source in PAGES}
    for source in sorted({target for page, text in (written | outside).items() for target in sources_of(text, page)}):
        pages[page_of(source)] = source_page(source)
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links that leave ``docs`` into links to the pages of what they point to."""
    source = f"docs/{page.file.src_uri}"
    return linked(markdown, source) if (ROOT / source).is_file() else markdown


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Show roles of docstrings (``:class:`~a.b.C```) as the name alone."""
    return re.sub(r":\w+:<code>~?(?:[\w.]*\.)?(\w+(?:\(\))?)</code>", r"<code>\1</code>", html)


def linked(text: str, source: str) -> str:
    """A page's text with the links of the site; links inside code stay.

    Args:
        text: Markdown.
        source: the page's file in the repository.
    """
    here = Path(PAGES.get(source, source.removeprefix("docs/"))).parent

    def link(found: re.Match[str]) -> str:
        target, hash_, anchor = found[2].partition("#")
        path = _path_of(target, source)
        if path is None:
            return found[0]
        page = path.removeprefix("docs/") if path.startswith("docs/") else PAGES.get(path, page_of(path))
        return f"{found[1]}{os.path.relpath(page, here)}{hash_}{anchor}{found[3]}"

    parts = _FENCE.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


def _path_of(target: str, source: str) -> str | None:
    """The repository's file or folder that a link points to; ``None`` for addresses and anchors."""
    if not target or "://" in target or target.startswith("mailto:"):
        return None
    path = os.path.normpath(os.path.join(os.path.dirname(source), target))
    return path if (ROOT / path).exists() else None


def sources_of(text: str, source: str) -> Iterator[str]:
    """The files and folders outside of ``docs``, other than pages, that a text links to."""
    for part in _FENCE.split(text):
        for found in _LINK.finditer("" if part.startswith("```") else part):
            path = _path_of(found[2].partition("#")[0], source)
            if path is not None and not path.startswith("docs/") and path not in PAGES:
                yield path


def page_of(path: str) -> str:
    """The page that shows a source file or a folder."""
    return f"source/{path.removesuffix('.md')}.md"


def source_page(path: str) -> str:
    """A page with a file's text, or with the names in a folder."""
    place = ROOT / path
    if place.is_dir():
        names = sorted(f"{entry.name}{'/' * entry.is_dir()}" for entry in place.iterdir() if entry.name[0] not in "._")
        return f"# {path}\n\n" + "\n".join(f"- `{name}`" for name in names) + "\n"
    text = place.read_text(encoding="utf-8")
    if path.endswith(".md"):
        return linked(text, path)
    fence = "`" * (1 + max([2, *map(len, re.findall(r"`+", text))]))
    return f"# {path}\n\n{fence}{LANGUAGES.get(place.suffix, '')}\n{text}{fence}\n"


def options_page() -> str:
    """All keys of a config and of the classes that it names, from the table that ``grpo fit --help`` reads."""
    table = json.loads((ROOT / "grpo_lightning/cli/options.json").read_text(encoding="utf-8"))
    lines = [
        "# Options of the command line",
        "",
        "`grpo fit --help` and `grpo fit --data.task.help Tabular` print the same. Keys are written as on the command",
        "line; in YAML, the options of a class stand under `init_args`.",
        "",
    ]
    groups: dict[str, dict[str, Any]] = {}
    for key, option in table["keys"].items():
        groups.setdefault(key.split(".")[0] if "." in key else "", {})[key] = option
    trainer = groups.pop("trainer", {})
    for group, options in {**groups, "trainer": trainer}.items():
        lines += [f"## {group or 'The run'}", "", *_table(options)]
    kinds: dict[str, list[str]] = {}
    for name, cls in table["classes"].items():
        kinds.setdefault(cls["kind"], []).append(name)
    for kind, names in kinds.items():
        lines += [f"## Classes: {kind}", ""]
        for name in names:
            cls = table["classes"][name]
            lines += [f"### {name}", "", _text(cls["summary"]), "", *_table(cls["options"])]
    return "\n".join(lines)


def _table(options: Mapping[str, Any]) -> list[str]:
    if not options:
        return ["No options.", ""]
    rows = ["| key | type | default | |", "|---|---|---|---|"]
    for key, option in options.items():
        default = "required" if option.get("required") else f"`{json.dumps(option.get('default'))}`"
        rows.append(
            f"| `{key}` | {_text(option['type'])} | {default.replace('|', '&#124;')} | {_text(option['help'])} |"
        )
    return [*rows, ""]


def _text(text: str) -> str:
    """Text of a docstring inside a table; what HTML or a table would read is escaped."""
    return re.sub(r"[|<>*_\[\]`]", lambda found: f"&#{ord(found[0])};", text)
