"""One HTML file that shows rollouts: the data as JSON inside, drawn by a small script, with nothing to load."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

CHUNK = 256
"""Rollouts whose tokens are parsed together, when one of them is first shown."""

FIELDS = (
    "step", "group", "attempt", "parent", "prompt", "text", "verdict", "reward", "advantage", "learned", "finish",
    "tokens", "feedback", "logprob", "kl", "rewards",
)  # fmt: skip
VERDICTS = ("correct", "format only", "wrong", "error")


class Page:
    """Gathers rollouts, and writes them as a page.

    Args:
        title: of the page.
        max_bytes: of the data. What is beyond it is left out by whole steps, evenly over the run.
    """

    def __init__(self, title: str, max_bytes: float) -> None:
        self.title = title
        self.max_bytes = max_bytes
        self._steps: dict[int, dict[str, _Encoded]] = {}
        self._prompts: dict[str, int] = {}

    def add(self, record: dict[str, Any]) -> None:
        """Add a record that :func:`read_rollouts` gave, stored as compactly as possible."""
        prompt = _json([record["prompt"], record["answer"], record["metadata"]])
        number = self._prompts.setdefault(prompt, len(self._prompts))
        self._steps.setdefault(record["step"], {})[record["id"]] = _Encoded(record, number)

    def __len__(self) -> int:
        return sum(map(len, self._steps.values()))

    @property
    def sizes(self) -> dict[int, int]:
        """Bytes of each step."""
        return {step: sum(one.size for one in rows.values()) for step, rows in sorted(self._steps.items())}

    def html(self) -> tuple[str, str]:
        """The page, and a sentence about what is in it and what was left out."""
        steps = thinned(self.sizes, self.max_bytes)
        rows: list[_Encoded] = [one for step in steps for _, one in sorted(self._steps[step].items(), key=_natural)]
        index = {one.key: place for place, one in enumerate(rows)}
        used = sorted({one.fields["prompt"] for one in rows})
        renumbered = {old: new for new, old in enumerate(used)}
        prompts = list(self._prompts)
        note = f"{len(rows):,} rollouts of {len(steps):,} steps"
        if len(rows) < len(self):
            note += (
                f"; {len(self) - len(rows):,} rollouts of {len(self._steps) - len(steps):,} other steps are left out, "
                f"evenly over the run, to keep the page below {self.max_bytes / 2**20:g} MiB: give --max_mib or --steps"
            )
        head = {"note": note, "fields": FIELDS, "verdicts": VERDICTS, "chunk": CHUNK}
        encoded = []
        for one in rows:
            parent = None if one.parent is None else index.get(one.parent)
            fields = one.fields | {"prompt": renumbered[one.fields["prompt"]], "parent": parent}
            encoded.append(_json([fields[name] for name in FIELDS]))
        rollouts = ",\n".join(encoded)
        data = [
            _block("head", _json(head)),
            _block("prompts", "[" + ",\n".join(prompts[number] for number in used) + "]"),
            _block("rollouts", f"[{rollouts}]"),
        ]
        for start in range(0, len(rows), CHUNK):
            part = ",\n".join(one.tokens for one in rows[start : start + CHUNK])
            data.append(_block(f"tokens-{start // CHUNK}", f"[{part}]"))
        return _filled(self.title, data), note


class _Encoded:
    """A rollout as the page has it."""

    def __init__(self, record: dict[str, Any], prompt: int) -> None:
        self.key = record["id"]
        self.parent = record["parent"]
        kind = "error" if record["error"] is not None else "correct" if record["correct"] else "wrong"
        if kind == "wrong" and record["format_valid"]:
            kind = "format only"
        self.fields: dict[str, Any] = {
            "step": record["step"],
            "group": record["group"],
            "attempt": record["attempt"],
            "parent": None,
            "prompt": prompt,
            "text": record["completion"],
            "verdict": VERDICTS.index(kind),
            "reward": record["reward"],
            "advantage": record["advantage"],
            "learned": record["learned"],
            "finish": record["finish_reason"],
            "tokens": record["tokens"],
            "feedback": record["error"] if record["error"] is not None else record["feedback"],
            "logprob": record["logprob_mean"],
            "kl": record["kl"],
            "rewards": record["rewards_by_verifier"] if len(record["rewards_by_verifier"]) > 1 else None,
        }
        self.tokens = _json(_tokens(record))
        self.size = len(self.tokens) + len(_json(list(self.fields.values())))


def _tokens(record: dict[str, Any]) -> list[Any] | None:
    """Characters, log-probs, log-ratio to the reference and advantages of the tokens, the numbers in hundredths."""
    characters = record.get("token_characters")
    if characters is None:
        return None
    logprobs, reference = record["token_logprobs"], record["token_reference_logprobs"]
    gaps = None
    if reference is not None:
        gaps = [
            None if ours is None or theirs is None else ours - theirs
            for ours, theirs in zip(logprobs, reference, strict=True)
        ]
    return [characters, *(_hundredths(values) for values in (logprobs, gaps, record["token_advantages"]))]


def _hundredths(values: Sequence[float | None] | None) -> list[int | None] | None:
    return None if values is None else [None if value is None else round(100 * value) for value in values]


def thinned(sizes: dict[int, int], limit: float) -> list[int]:
    """The steps to show: all, or every n-th with the first and the last, for the least n that fits; at least one."""
    steps = list(sizes)
    for stride in range(1, len(steps) + 1):
        chosen = steps[::stride]
        if len(chosen) > 1:
            chosen[-1] = steps[-1]
        if sum(sizes[step] for step in chosen) <= limit:
            return chosen
    return steps[-1:]


def _natural(item: tuple[str, Any]) -> list[tuple[int, str]]:
    """Sorts ``train/2/10`` behind ``train/2/9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in item[0].split("/")]


def _json(value: Any) -> str:
    """JSON that can stand inside of a script element, whatever a text says.

    ``<`` cannot occur: no ``</script>`` ends the element, and no ``<!--<script>`` changes how it is read.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _block(name: str, text: str) -> str:
    return f'<script type="application/json" id="{name}">{text}</script>'


def _filled(title: str, data: Iterable[str]) -> str:
    folder = files("grpo_lightning.commands.samples")
    style, script = ((folder / f"browser.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    # Nothing runs and nothing is loaded but this script and this style, whatever else should get into the page.
    policy = f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}"
    parts = {
        "POLICY": html.escape(policy, quote=False),
        "TITLE": html.escape(title),
        "STYLE": style,
        "DATA": "\n".join(data),
        "SCRIPT": script,
    }
    pieces = (folder / "browser.html").read_text(encoding="utf-8").split("@@")
    page = "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))
    # Half of a character that lies beyond 16 bits cannot be written.
    return page.encode("utf-8", "replace").decode("utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
