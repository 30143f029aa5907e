"""Give README.md and pyproject.toml the address of the repository: a package index shows the README away from it.

    python scripts/absolute_links.py https://github.com/OWNER/NAME v1.2.3

The release workflow runs this before the build, with the address that its runner knows, so no file has to repeat it.
Relative links become links to the tag, pictures links to the files themselves, and `[project.urls]` is added.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"(!?)(\[[^\]]*\])\(([^)\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def absolute(text: str, repository: str, ref: str) -> str:
    """A page at the root of the repository with absolute links; those inside code stay.

    Args:
        text: Markdown.
        repository: the address of the repository.
        ref: a tag, branch or commit.
    """

    def link(found: re.Match[str]) -> str:
        picture, label, target = found.groups()
        if target.startswith(("#", "mailto:")) or "://" in target:
            return found[0]
        return f"{picture}{label}({repository}/{'raw' if picture else 'blob'}/{ref}/{target})"

    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in _FENCE.split(text))


def with_urls(project: str, repository: str, ref: str) -> str:
    """A ``pyproject.toml`` with the project's addresses."""
    urls = {
        "Repository": repository, "Issues": f"{repository}/issues", "Changelog": f"{repository}/blob/{ref}/CHANGELOG.md"
    }  # fmt: skip
    lines = "".join(f'{name} = "{address}"\n' for name, address in urls.items())
    return project.replace("[project.scripts]\n", f"[project.urls]\n{lines}\n[project.scripts]\n", 1)


def main(repository: str, ref: str, root: Path = ROOT) -> None:
    """Rewrite both files."""
    readme, project = root / "README.md", root / "pyproject.toml"
    if "[project.urls]" in project.read_text(encoding="utf-8"):
        raise SystemExit("pyproject.toml has its addresses already: start from a clean checkout")
    readme.write_text(absolute(readme.read_text(encoding="utf-8"), repository, ref), encoding="utf-8")
    project.write_text(with_urls(project.read_text(encoding="utf-8"), repository, ref), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[1].startswith("https://"):
        raise SystemExit(__doc__)
    main(sys.argv[1].rstrip("/"), sys.argv[2])
