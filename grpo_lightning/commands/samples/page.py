"""Build a page that shows rollouts: an index with the curves, and one script per step, which the page loads on demand.

A page from a local file may not fetch data, but it may add a script. So the rollouts of a step are a script that hands
them over, and the page works without a server and without a network.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import shutil
from collections.abc import Iterable, Sequence
from importlib.resources import files
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from grpo_lightning.commands import charts
from grpo_lightning.types import VERDICT_KINDS, verdict_kind

FIELDS = (
    "attempt", "parent", "turn", "group", "prompt", "text", "verdict", "reward", "advantage", "finish",
    "tokens", "feedback", "logprob", "kl", "rewards",
)  # fmt: skip
COLUMNS = ("step", "rollouts", *VERDICT_KINDS, "truncated", "accuracy", "reward", "tokens", "kl")
"""What the index holds of each step."""


def write_page(out: Path, title: str, records: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """Write a page, and the folder beside it with a file per step. Holds one step in memory.

    Args:
        out: the page. Its folder is named after it: ``samples_steps`` for ``samples.html``.
        title: title of the page.
        records: as :func:`read_rollouts` yields them, one step after the other.

    Returns:
        How many rollouts and how many steps it shows. Without any, nothing is written, and a page of an earlier time
        stays as it is.
    """
    folder = out.with_name(f"{out.stem}_steps")
    part = out.with_name(f"{out.stem}_steps.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        total, steps, index = _write_parts(part, folder.name, title, records)
        if total:
            folder.mkdir(exist_ok=True)
            for file in folder.glob("step-*.js"):
                file.unlink()
            for file in part.iterdir():
                file.replace(folder / file.name)
            _write(part / "index.html", index)
            (part / "index.html").replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return total, steps


def _write_parts(part: Path, folder: str, title: str, records: Iterable[dict[str, Any]]) -> tuple[int, int, str]:
    """Write the file of each step, and return how many rollouts and steps there are, and the text of the page."""
    columns: list[list[Any]] = []
    unit = "step"
    for step, rows in groupby(records, key=itemgetter("step")):
        rollouts = sorted(rows, key=_place)
        unit = "batch" if "sampled_for" in rollouts[0] else "step"
        _write(part / f"step-{step}.js", f"arrived({step}, {charts.safe_json(_step(rollouts))});\n")
        columns.append(_summary(step, rollouts))
    if not columns:
        return 0, 0, ""
    steps = dict(zip(COLUMNS, zip(*columns, strict=True), strict=True))
    head = {"unit": unit, "folder": folder, "fields": FIELDS, "verdicts": VERDICT_KINDS, "steps": steps}
    return sum(column[1] for column in columns), len(columns), _index(title, charts.safe_json(head))


def _step(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Encode the rollouts of a step compactly: rows without names, and each prompt once."""
    rows = {record["id"]: place for place, record in enumerate(records)}
    prompts: dict[str, int] = {}
    rollouts, tokens = [], []
    for record in records:
        prompt = json.dumps([record["prompt"], record["answer"], record["metadata"]])
        fields = {
            "attempt": record["attempt"],
            "parent": rows.get(record["parent"]),
            "turn": _is_turn(record),
            "group": record["group"],
            "prompt": prompts.setdefault(prompt, len(prompts)),
            "text": record["completion"],
            "verdict": VERDICT_KINDS.index(_verdict(record)),
            "reward": record["reward"],
            "advantage": record["advantage"],
            "finish": record["finish_reason"],
            "tokens": record["tokens"],
            "feedback": record["error"] if record["error"] is not None else record["feedback"],
            "logprob": record["logprob_mean"],
            "kl": record["kl"],
            "rewards": record["rewards_by_verifier"] if len(record["rewards_by_verifier"]) > 1 else None,
        }
        rollouts.append([fields[name] for name in FIELDS])
        tokens.append(_tokens(record))
    return {"prompts": [json.loads(prompt) for prompt in prompts], "rollouts": rollouts, "tokens": tokens}


def _summary(step: int, records: Sequence[dict[str, Any]]) -> list[Any]:
    """Return the :data:`COLUMNS` of a step.

    Accuracy and reward are those of the first attempts. A conversation has the verdict of its last turn, and the sum of
    the rewards of all.
    """
    verdicts = [_verdict(record) for record in records]
    conversations: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record["attempt"] == 1 or _is_turn(record):
            conversations.setdefault(record["id"].partition("/turn")[0], []).append(record)
    rewards = [[turn["reward"] for turn in turns] for turns in conversations.values()]
    sums = [sum(of_turns) for of_turns in rewards if None not in of_turns]
    kls = [record["kl"] for record in records if record["kl"] is not None]
    return [
        step,
        len(records),
        *map(verdicts.count, VERDICT_KINDS),
        sum(record["finish_reason"] == "length" for record in records),
        round(fmean(_verdict(turns[-1]) == "correct" for turns in conversations.values()), 4),
        round(fmean(sums), 4) if sums else None,
        round(fmean(record["tokens"] for record in records), 1),
        max(kls, default=None),
    ]


def _verdict(record: dict[str, Any]) -> str:
    return verdict_kind(record["correct"], record["format_valid"], record["error"])


def _is_turn(record: dict[str, Any]) -> bool:
    """Whether a record continues the conversation of its parent; a further attempt begins again."""
    return "/turn" in record["id"]


def _tokens(record: dict[str, Any]) -> list[Any] | None:
    """Return characters, log-probs, log-ratios to the reference and advantages per token, the numbers in hundredths."""
    characters = record.get("token_characters")
    if characters is None:
        return None
    logprobs, reference = record["token_logprobs"], record["token_reference_logprobs"]
    log_ratios = None
    if reference is not None:
        log_ratios = [
            None if policy is None or ref is None else policy - ref
            for policy, ref in zip(logprobs, reference, strict=True)
        ]
    return [characters, *(_hundredths(values) for values in (logprobs, log_ratios, record["token_advantages"]))]


def _hundredths(values: Sequence[float | None] | None) -> list[int | None] | None:
    return None if values is None else [None if value is None else round(100 * value) for value in values]


def _place(record: dict[str, Any]) -> list[tuple[int, str]]:
    """Sort key that puts ``train/2/10`` after ``train/2/9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in record["id"].split("/")]


def _index(title: str, data: str) -> str:
    style = charts.style() + _read("browser.css")
    scripts = [*charts.scripts(), *map(_read, ("data.js", "draw.js", "browser.js"))]
    # The policy allows these scripts, what they load, and this style, even if other markup should get into the page.
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_digest, scripts))} 'strict-dynamic'; style-src {_digest(style)}"
    )
    parts = {
        "POLICY": html.escape(policy, quote=False),
        "TITLE": html.escape(title),
        "STYLE": style,
        "DATA": data,
        "SCRIPTS": "\n".join(f"<script>{text}</script>" for text in scripts),
    }
    pieces = _read("browser.html").split("@@")
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def _read(name: str) -> str:
    return (files("grpo_lightning.commands.samples") / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _write(file: Path, text: str) -> None:
    # A lone surrogate cannot be encoded; it becomes a question mark.
    file.write_bytes(text.encode("utf-8", "replace"))
