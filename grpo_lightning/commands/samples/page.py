"""Build a self-contained HTML page that shows rollouts: the data is embedded as JSON and drawn by a small script."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

CHUNK = 256
"""Number of rollouts whose tokens are parsed together, when one of them is first shown."""

FIELDS = (
    "step", "group", "attempt", "parent", "prompt", "text", "verdict", "reward", "advantage", "learned", "finish",
    "tokens", "feedback", "logprob", "kl", "rewards",
)  # fmt: skip
VERDICTS = ("correct", "format only", "wrong", "error")


class Page:
    """Collects rollouts and writes them as a page.

    Args:
        title: title of the page.
        max_bytes: size limit of the data. To stay below it, whole steps are omitted evenly over the run.
    """

    def __init__(self, title: str, max_bytes: float) -> None:
        self.title = title
        self.max_bytes = max_bytes
        self._steps: dict[int, dict[str, _EncodedRollout]] = {}
        self._prompts: dict[str, int] = {}

    def add(self, record: dict[str, Any]) -> None:
        """Add a record of :func:`read_rollouts`, encoded compactly."""
        prompt = _json([record["prompt"], record["answer"], record["metadata"]])
        number = self._prompts.setdefault(prompt, len(self._prompts))
        self._steps.setdefault(record["step"], {})[record["id"]] = _EncodedRollout(record, number)

    def __len__(self) -> int:
        return sum(map(len, self._steps.values()))

    @property
    def sizes(self) -> dict[int, int]:
        """Size of each step in bytes."""
        return {
            step: sum(rollout.size for rollout in rollouts.values()) for step, rollouts in sorted(self._steps.items())
        }

    def html(self) -> tuple[str, str]:
        """Write the page. Returns it with a sentence that states what it contains and what was omitted."""
        steps = thinned(self.sizes, self.max_bytes)
        rollouts: list[_EncodedRollout] = [
            rollout for step in steps for _, rollout in sorted(self._steps[step].items(), key=_natural)
        ]
        index = {rollout.key: position for position, rollout in enumerate(rollouts)}
        used = sorted({rollout.fields["prompt"] for rollout in rollouts})
        renumbered = {old: new for new, old in enumerate(used)}
        prompts = list(self._prompts)
        note = f"{len(rollouts):,} rollouts of {len(steps):,} steps"
        if len(rollouts) < len(self):
            note += (
                f"; {len(self) - len(rollouts):,} rollouts of {len(self._steps) - len(steps):,} other steps were "
                f"omitted, evenly over the run, to keep the page below {self.max_bytes / 2**20:g} MiB: raise --max_mib "
                "or narrow --steps to see them"
            )
        head = {"note": note, "fields": FIELDS, "verdicts": VERDICTS, "chunk": CHUNK}
        encoded = []
        for rollout in rollouts:
            parent = None if rollout.parent is None else index.get(rollout.parent)
            fields = rollout.fields | {"prompt": renumbered[rollout.fields["prompt"]], "parent": parent}
            encoded.append(_json([fields[name] for name in FIELDS]))
        rows = ",\n".join(encoded)
        data = [
            _block("head", _json(head)),
            _block("prompts", "[" + ",\n".join(prompts[number] for number in used) + "]"),
            _block("rollouts", f"[{rows}]"),
        ]
        for start in range(0, len(rollouts), CHUNK):
            tokens = ",\n".join(rollout.tokens for rollout in rollouts[start : start + CHUNK])
            data.append(_block(f"tokens-{start // CHUNK}", f"[{tokens}]"))
        return _filled(self.title, data), note


class _EncodedRollout:
    """A rollout in the encoding of the page."""

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


def thinned(sizes: dict[int, int], limit: float) -> list[int]:
    """Select the steps to show: every n-th, with the first and the last, for the smallest n that fits; at least one."""
    steps = list(sizes)
    for stride in range(1, len(steps) + 1):
        chosen = steps[::stride]
        if len(chosen) > 1:
            chosen[-1] = steps[-1]
        if sum(sizes[step] for step in chosen) <= limit:
            return chosen
    return steps[-1:]


def _natural(item: tuple[str, Any]) -> list[tuple[int, str]]:
    """Sort key that puts ``train/2/10`` after ``train/2/9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in item[0].split("/")]


def _json(value: Any) -> str:
    """Write JSON that is safe inside a script element, whatever the texts contain.

    ``<`` is escaped, so ``</script>`` cannot end the element and ``<!--<script>`` cannot change how it is parsed.
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
    # The policy allows only this script and this style, and no loading, even if other markup should get into the page.
    policy = f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}"
    parts = {
        "POLICY": html.escape(policy, quote=False),
        "TITLE": html.escape(title),
        "STYLE": style,
        "DATA": "\n".join(data),
        "SCRIPT": script,
    }
    pieces = (folder / "browser.html").read_text(encoding="utf-8").split("@@")
    page = "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))
    # A lone surrogate cannot be encoded; it becomes a question mark.
    return page.encode("utf-8", "replace").decode("utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
