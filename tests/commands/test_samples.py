"""``grpo samples``: the page, in a real browser if there is one, and what it omits."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import webbrowser
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from grpo_lightning.__main__ import main
from grpo_lightning.callbacks import RolloutLogger
from grpo_lightning.commands.samples.page import Page, thinned
from grpo_lightning.rollout import RefinementConfig
from tests.toy import fit, grpo, rollouts

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def row(step: int = 0, group: int = 0, member: int = 0, text: str = "fine", **changes: Any) -> dict[str, Any]:
    """A record of one token, as the logger writes it."""
    return {
        "step": step, "optimizer_step": step + 1, "rank": 0, "id": f"train/{step}/{group}/{member}",
        "group": f"train/{step}/{group}", "attempt": 1, "parent": None, "answer": "4", "metadata": {},
        "prompt": [{"role": "user", "content": f"prompt {step}.{group}"}], "completion": text, "correct": False,
        "format_valid": False, "reward": 0.0, "feedback": "", "error": None, "finish_reason": "stop", "tokens": 1,
        "rewards_by_verifier": {"One": 0.0}, "advantage": 0.0, "learned": True, "logprob_mean": -0.5,
        "logprob_min": -0.5, "kl": None, "token_ids": [1], "token_characters": [len(text)], "token_logprobs": [-0.5],
        "token_reference_logprobs": None, "token_advantages": None,
    } | changes  # fmt: skip


def write(folder: Path, *rows: dict[str, Any], start: str = "001-from-step-000000") -> Path:
    (folder / "rollouts" / start).mkdir(parents=True)
    file = folder / "rollouts" / start / "rank0-step-000000.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in rows))
    return folder


def dom(run: Path, view: str = "", *args: str) -> str:
    """The page's elements in Chromium after its script has run, without the data."""
    main(["samples", str(run), *args])
    assert CHROMIUM is not None
    # Chromium refuses to run as root with its sandbox.
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    address = (run / "samples.html").absolute().as_uri() + view
    done = subprocess.run(
        [CHROMIUM, "--headless", *sandbox, "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom", address],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return re.sub(r"<script.*?</script>", "", done.stdout, flags=re.S)


def cards(page: str) -> list[str]:
    """The words of every rollout shown, except those that do not match the filters."""
    found = re.findall(r'<article class="rollout v\d( again)?">(.*?)</article>', page, flags=re.S)
    return [html.unescape(re.sub(r"<[^>]+>", " ", text)) for _, text in found]


def said(page: str, name: str) -> str:
    (text,) = re.findall(rf'<span id="{name}">(.*?)</span>', page)
    return html.unescape(text)


class Elements(HTMLParser):
    """The kinds of elements and attributes in a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)


@browser
def test_the_rollouts_of_a_real_run_are_shown(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    data = rollouts(refinement=RefinementConfig(budget=2))
    fit(tmp_path, grpo(tiny_model("lfm2"), beta=0.1), 2, data, callbacks=[RolloutLogger()])
    page = dom(tmp_path)
    records = [json.loads(line) for file in (tmp_path / "rollouts").glob("*/*") for line in file.open()]
    assert said(page, "note") == f"{len(records)} rollouts of 2 steps"
    shown = cards(page)
    assert len(shown) == len(records)
    again = [record for record in records if record["attempt"] == 2]
    assert again
    assert page.count("attempt 2, after the feedback above:") == len(again)
    spans = re.findall(r'<span class="" data-token|<span data-token', page)
    assert len(spans) == sum(sum(length > 0 for length in record["token_characters"]) for record in records)
    assert "background-color: rgba(220, 70, 30" in page
    # Other shades have other colours: the policy has moved away from its reference in both directions.
    assert "background-color: rgba(40, 110, 230" not in page
    assert "background-color: rgba(40, 110, 230" in dom(tmp_path, "#shade=kl")
    assert "background-color: rgba(40, 110, 230" in dom(tmp_path, "#shade=advantage")
    assert "background-color: rgba" not in re.sub('<span id="legend".*?</header>', "", dom(tmp_path, "#shade=none"))


@browser
def test_nothing_that_a_model_writes_is_executed(tmp_path: Path) -> None:
    attacks = [
        "<script>document.title='taken'</script>",
        "</script><script>document.title='taken'</script>",
        "<!--<script>document.title='taken'",
        "<img src=x onerror=\"document.title='taken'\">",
        "<svg onload=\"document.title='taken'\">",
        "]]></script></style></title><iframe srcdoc=\"<script>top.document.title='taken'</script>\">",
        "\\u003cscript>document.title='taken'\\u003c/script>\u2028\u2029\x00\x1b \ud800 \u202e",
        "@@SCRIPT@@ @@DATA@@",
    ]
    rows = [
        row(
            member=number, text=attack, feedback=attack, token_characters=None, rewards={attack: 1.0, "other": 0.0},
            prompt=[{"role": attack, "content": attack}], answer={attack: attack}, metadata={attack: [attack]},
            error=attack if number % 2 else None, group=attack, id=f"{attack}/{number}",
        )
        for number, attack in enumerate(attacks)
    ]  # fmt: skip
    run = write(tmp_path / "<img src=x onerror=document.title=1>", *rows)
    page = dom(run)
    title = re.findall("<title>(.*?)</title>", page)[0]
    assert html.unescape(title).endswith("/<img src=x onerror=document.title=1>")
    elements = Elements(page)
    assert elements.tags.isdisjoint({"img", "iframe", "script"})
    assert not [name for name in elements.attributes if name.startswith(("on", "src"))]
    shown = " ".join(cards(page))
    assert all(attack in shown for attack in attacks[:6])
    # A text without tokens is shown as a whole; an unprintable half of a character is shown as a question mark.
    assert "\\u003cscript>document.title='taken'\\u003c/script>" in shown


@browser
def test_the_page_lets_no_script_run_but_its_own(tmp_path: Path) -> None:
    """A content security policy backs up the escaping: even a script that got into the page does not run."""
    run = write(tmp_path / "run", row())
    main(["samples", str(run)])
    file = run / "samples.html"
    attack = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    file.write_text(file.read_text().replace("<header>", attack + "<header>"))
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", file.as_uri()]
    page = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    assert "onerror" in page
    assert "<title>taken" not in page
    assert 'class="rollout v2"' in page, "its own script has run"


FILTERS = [
    ("", {"right", "half", "bad", "broken", "cut", "late"}),
    ("#hide=correct,wrong", {"half", "broken"}),
    ("#hide=error,format only", {"right", "bad", "cut", "late"}),
    ("#from=1", {"late"}),
    ("#to=0&least=0.5", {"right", "half"}),
    ("#most=0.4", {"bad", "cut", "late"}),
    ("#cut=1", {"cut"}),
    ("#again=1", {"half"}),
    ("#signal=1", {"right", "half", "bad"}),
    ("#search=RIGHT", {"right"}),
    ("#search=prompt 1.0", {"late"}),
    ("#search=nowhere", set()),
]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    right = row(text="right", correct=True, format_valid=True, reward=1.0)
    half = row(member=2, text="half", format_valid=True, reward=0.5, attempt=2, parent="train/0/0/1")
    bad = row(member=1, text="bad", feedback="try again")
    broken = row(group=1, text="broken", error="gone", reward=None)
    cut = row(group=2, text="cut", finish_reason="length", tokens=9, advantage=None)
    return write(tmp_path / "run", right, bad, half, broken, cut, row(step=1, text="late", kl=0.5))


@browser
@pytest.mark.parametrize(("view", "wanted"), FILTERS)
def test_filters_show_the_matching_rollouts(mixed: Path, view: str, wanted: set[str]) -> None:
    page = dom(mixed, view.replace(" ", "%20"))
    words = {word for text in cards(page) for word in text.split()} & FILTERS[0][1]
    assert words == wanted
    groups = page.count('<section class="group">')
    assert said(page, "count") == f"{len(wanted)} rollouts in {groups} groups"
    assert ("Nothing matches." in page) is not wanted


@browser
def test_an_episode_is_one_conversation(tmp_path: Path) -> None:
    start = [{"role": "user", "content": "Guess."}]
    first = row(text="thirteen", prompt=start)
    said = [*start, {"role": "assistant", "content": "thirteen"}, {"role": "user", "content": "higher"}]
    last = row(text="twenty", prompt=said, id=f"{first['id']}/turn2", attempt=2, parent=first["id"])
    shown = dom(write(tmp_path, first, last))
    words = [shown.index(text) for text in ("Guess.", "thirteen", "higher", "twenty")]
    assert words == sorted(words)
    assert shown.count("thirteen") == 1, "a reply is there once, not also as a message"
    assert "after the feedback above" not in shown


@browser
def test_groups_can_be_sorted_and_paged(tmp_path: Path) -> None:
    rows = [row(step=step, member=member, text=f"s{step}m{member}", reward=float(step % 7), tokens=step)
            for step in range(40) for member in range(4)]  # fmt: skip
    run = write(tmp_path, *rows)

    def steps(view: str) -> list[int]:
        return [int(step) for step in re.findall(r"<h2><span>step (\d+)", dom(run, view).replace(' class=""', ""))]

    assert steps("") == list(range(16))
    assert steps("#page=3") == list(range(32, 40))
    assert steps("#order=-step") == list(range(39, 23, -1))
    assert steps("#order=-tokens&page=2") == list(range(23, 7, -1))
    assert {step % 7 for step in steps("#order=reward")} == {0, 1, 2}
    assert steps("#page=9") == list(range(32, 40))


def test_a_page_above_its_size_limit_omits_whole_steps_evenly_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(step=step, member=member, text="x" * 1000) for step in range(50) for member in range(4)]
    run = write(tmp_path, *rows)
    main(["samples", str(run), "--max_mib", "0.1"])
    note, file = capsys.readouterr().out.splitlines()
    assert file == str(run / "samples.html")
    text = (run / "samples.html").read_text()
    steps = [int(step) for step in re.findall(r"^\[(\d+),\"train", text, flags=re.M)]
    steps += [int(step) for step in re.findall(r'id="rollouts">\[\[(\d+),', text)]
    shown = sorted(set(steps))
    assert shown == [*range(0, 48, 3), 49], "every third, and the last"
    assert note.startswith(f"{4 * len(shown)} rollouts of {len(shown)} steps; {200 - 4 * len(shown)} rollouts of ")
    assert note.endswith("to keep the page below 0.1 MiB: raise --max_mib or narrow --steps to see them")
    assert "omitted" in text
    main(["samples", str(run), "--max_mib", "1"])
    assert capsys.readouterr().out.startswith("200 rollouts of 50 steps\n")


def test_thinning_keeps_the_ends() -> None:
    sizes = dict.fromkeys(range(0, 100, 10), 1)
    assert thinned(sizes, 10) == list(sizes)
    assert thinned(sizes, 5) == [0, 20, 40, 60, 90]
    assert thinned(sizes, 2) == [0, 90]
    assert thinned(sizes, 0.5) == [90], "one step is shown, however large it is"


def test_the_options_steps_out_and_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    run = write(tmp_path / "run", *(row(step=step) for step in range(5)))
    for steps, count in {"1:3": 3, "3:": 2, ":0": 1, ":": 5}.items():
        main(["samples", str(run), "--steps", steps, "--out", str(tmp_path / "page.html")])
        assert capsys.readouterr().out == f"{count} rollouts of {count} steps\n{tmp_path}/page.html\n"
    assert not (run / "samples.html").exists()
    assert not opened
    main(["samples", str(run), "--open"])
    assert opened == [(run / "samples.html").as_uri()]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["RUN/nothing"], "has no logged rollouts; give the directory of a run"),
        (["RUN", "--steps", "7"], "--steps: must be FIRST:LAST"),
        (["RUN", "--steps", "9:"], "--steps: .* has no rollouts in the steps 9:"),
        (["RUN", "--max_mib", "0"], "--max_mib: must be above 0, not 0"),
        ([], "the following arguments are required: run_dir"),
    ],
)
def test_mistakes_are_one_sentence(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path / "run", row())
    with pytest.raises(SystemExit) as stopped:
        main(["samples", *(arg.replace("RUN", str(run)) for arg in args)])
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_the_page_refers_to_nothing_outside_itself(tmp_path: Path) -> None:
    page = Page("run", 1e9)
    page.add(row())
    text, _ = page.html()
    assert "src=" not in text
    assert set(re.findall(r"https?://[^\"' )]+", text)) == {"http://www.w3.org/2000/svg"}
    assert page.html()[0] == text
