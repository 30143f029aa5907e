"""The pictures of the README: a run in the terminal, and the page of its samples.

    grpo fit --config quickstart --trainer.max_steps 40 --trainer.val_check_interval 10 > run.log 2>&1
    grpo samples runs/quickstart/RUN
    python scripts/pictures.py runs/quickstart/RUN run.log     # writes docs/results/terminal.svg and samples.png

Needs rich and Chromium. The terminal's text is that of the run; "[...]" replaces its middle.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

OUT = Path(__file__).parents[1] / "docs/results"
BEGIN = "preflight: sampling and training"
FIRST, LAST = 8, 20
"""Lines that are shown from :data:`BEGIN` on, and of the end."""
WIDTH = 112


def shown_lines(log: str) -> list[str]:
    """Return what a terminal shows of a log in the end: progress bars overwrite themselves."""
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in log.replace("\r\n", "\n").split("\n")]
    lines = [line for line in lines if line and not line.startswith("Writing model shards")]
    bar = "train:"
    kept = [
        line for line, following in pairwise([*lines, ""]) if not (line.startswith(bar) and following.startswith(bar))
    ]
    start = next(place for place, line in enumerate(kept) if line.startswith(BEGIN))
    return [*kept[start : start + FIRST], "[...]", *kept[-LAST:]]


def terminal(command: Sequence[str], log: str) -> str:
    """Draw a command and its output as SVG, without fonts from a network."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {shlex.join(command)}", style="bold"))
    for line in shown_lines(log):
        style = "cyan" if line.startswith("train:") else "green" if re.match(r"(accuracy|reward) +\d", line) else ""
        console.print(Text(line, style=style), overflow="ellipsis", no_wrap=True)
    local = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    return console.export_svg(title="grpo fit", code_format=local, unique_id="terminal")


def screenshot(page: Path, out: Path) -> None:
    """Take a picture of a page in Chromium."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    options = ["--headless", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,800", *sandbox]
    budget = "--virtual-time-budget=5000"
    command = [browser, *options, budget, f"--screenshot={out}", page.absolute().as_uri()]
    subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory, with its samples.html")
    parser.add_argument("log", type=Path, help="what the run printed")
    given = parser.parse_args()
    command = json.loads((given.run / "environment.json").read_text())["command"]
    (OUT / "terminal.svg").write_text(terminal(command, given.log.read_text()))
    screenshot(given.run / "samples.html", OUT / "samples.png")


if __name__ == "__main__":
    main()
