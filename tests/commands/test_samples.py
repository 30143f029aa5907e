"""``grpo samples``: the page and its files, and what a real browser shows of them if there is one."""

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
from grpo_lightning.commands.samples.page import COLUMNS, FIELDS
from grpo_lightning.rollout import RefinementConfig
from grpo_lightning.stored import read_rollouts
from tests.toy import fit, grpo, rollouts

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def row(step: int = 0, group: int = 0, member: int | str = 0, text: str = "fine", **changes: Any) -> dict[str, Any]:
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


def headings(page: str) -> list[str]:
    """What stands above each of the columns of the page."""
    found = re.findall(r'<section class="pane[ a-z]*"><h2>(.*?)</h2>', page)
    return [html.unescape(re.sub(r"<[^>]+>", " ", text)) for text in found]


def index(page: Path) -> dict[str, Any]:
    """The data of the index, as the script reads it."""
    (text,) = re.findall(r'<script type="application/json" id="head">(.*?)</script>', page.read_text(), flags=re.S)
    return json.loads(text)  # type: ignore[no-any-return]


def step_data(page: Path, step: int) -> dict[str, Any]:
    """What the script of a step hands over."""
    text = (page.with_name(f"{page.stem}_steps") / f"step-{step}.js").read_text()
    (data,) = re.findall(rf"^arrived\({step}, (.*)\);$", text)
    return json.loads(data)  # type: ignore[no-any-return]


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
    assert f">{len(records)} rollouts of 2 steps</span>" in page
    first, last = headings(page)
    assert first.startswith("step 0, the first")
    assert last.startswith("step 1, the last")
    shown = cards(page)
    assert len(shown) == len(records)
    again = [record for record in records if record["attempt"] == 2]
    assert again
    assert page.count("attempt 2, after the feedback above:") == len(again)
    assert page.count('<span class="token"') == sum(
        sum(length > 0 for length in record["token_characters"]) for record in records
    )
    assert "background-color: rgba(220, 70, 30" in page
    # Other shades have other colours: the policy has moved away from its reference in both directions.
    assert "background-color: rgba(40, 110, 230" not in page
    assert "background-color: rgba(40, 110, 230" in dom(tmp_path, "#shade=kl")
    assert "background-color: rgba(40, 110, 230" in dom(tmp_path, "#shade=advantage")
    assert "background-color: rgba" not in dom(tmp_path, "#shade=none")


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
    ("#beside=", {"late"}),
    ("#step=0", {"right", "half", "bad", "broken", "cut"}),
    ("#step=0&least=0.5", {"right", "half"}),
    ("#most=0.4", {"bad", "cut", "late"}),
    ("#cut=1", {"cut"}),
    ("#again=1", {"half"}),
    ("#signal=1", {"right", "half", "bad"}),
    ("#search=RIGHT", {"right"}),
    ("#search=prompt 1.0", {"late"}),
    ("#search=nowhere", set()),
    ("#all=1&search=T", {"right", "cut", "late"} | {"half", "bad", "broken"}),
    ("#all=1&search=RIGHT", {"right"}),
    ("#all=1&hide=correct,wrong,format only", {"broken"}),
    ("#all=1&search=nowhere", set()),
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
    shown = [re.search(r"(\d+)(?: of \d+)? rollouts in (\d+) groups", heading) for heading in headings(page)]
    assert sum(int(match[1]) for match in shown if match) == len(wanted)
    assert sum(int(match[2]) for match in shown if match) == page.count('<section class="group">')
    assert ("Nothing matches." in page) is any(match is not None and match[1] == "0" for match in shown)


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
def test_groups_are_sorted_and_a_page_holds_some_of_them(tmp_path: Path) -> None:
    rows = [row(group=group, member=member, reward=float(group % 7), tokens=group)
            for group in range(40) for member in range(4)]  # fmt: skip
    run = write(tmp_path, *rows)

    def groups(page: str) -> list[int]:
        return [int(group) for group in re.findall(r">train/0/(\d+)<", page)]

    page = dom(run)
    assert groups(page) == list(range(12)), "48 rollouts"
    assert "show more of the other 28 groups" in page
    assert groups(dom(run, "#order=-tokens")) == list(range(39, 27, -1))
    assert {group % 7 for group in groups(dom(run, "#order=reward"))} == {0, 1}


@browser
def test_a_search_goes_back_step_by_step_until_a_page_is_full(tmp_path: Path) -> None:
    run = write(tmp_path, *(row(step=step, member=member) for step in range(40) for member in range(4)))
    page = dom(run, "#all=1")
    assert "48 rollouts in 12 groups, steps 28 to 39" in page
    assert "search further, from step 27 back" in page


@browser
def test_an_evaluation_shows_batches_of_single_completions(tmp_path: Path) -> None:
    rows = [row(step=step, group=group, sampled_for="accuracy") for step in range(2) for group in range(3)]
    run = write(tmp_path, *rows)
    page = dom(run)
    assert "6 rollouts of 2 batches" in page
    (heading,) = headings(page)
    assert heading.startswith("batch 1 3 of 3 rollouts"), "batches have no first and last"
    assert 'class="pane singles"' in page
    assert "mean reward 0.00, no signal" not in page
    assert 'id="chart" class="chart" title="click to show a step" hidden=""' in dom(run, "", "--steps", "1:1")


@browser
def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    run = write(tmp_path, row())
    main(["samples", str(run), "--out", str(tmp_path / "moved.html")])
    shutil.rmtree(tmp_path / "moved_steps")
    (tmp_path / "moved.html").rename(run / "samples.html")
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    address = (run / "samples.html").as_uri()
    page = subprocess.run([*command, address], check=True, capture_output=True, text=True, timeout=120).stdout
    assert "Cannot load moved_steps/step-0.js: keep this folder next to the page." in page


def test_the_index_holds_curves_only_and_a_file_per_step_the_rollouts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(step=step, member=member, text="x" * 1000) for step in range(50) for member in range(4)]
    run = write(tmp_path, *rows)
    main(["samples", str(run)])
    assert capsys.readouterr().out == f"200 rollouts of 50 steps\n{run}/samples.html\n"
    page = run / "samples.html"
    assert page.stat().st_size < 100_000
    assert "xxxxx" not in page.read_text()
    assert index(page)["steps"]["step"] == list(range(50))
    for step in (0, 49):
        assert [dict(zip(FIELDS, values, strict=True))["text"] for values in step_data(page, step)["rollouts"]] == [
            "x" * 1000
        ] * 4
    # Another page of the same name leaves no file of the first one.
    main(["samples", str(run), "--steps", "3:4"])
    assert sorted(file.name for file in (run / "samples_steps").iterdir()) == ["step-3.js", "step-4.js"]


def test_the_curves_count_a_conversation_once(tmp_path: Path) -> None:
    first = row(reward=-0.25, correct=True)
    second = row(member="0/turn2", reward=1.0, attempt=2, parent=first["id"], correct=True, finish_reason="length")
    again = row(member=1, id="train/0/0/1/2", reward=1.0, attempt=2, parent="train/0/0/1", correct=True)
    run = write(tmp_path, first, second, row(member=1), again, row(step=1, error="gone", reward=None, kl=0.25))
    main(["samples", str(run)])
    steps = index(run / "samples.html")["steps"]
    assert tuple(steps) == COLUMNS
    # The return 0.75 of the conversation, and 0 of the first attempt at the other; by hand.
    assert steps == {
        "step": [0, 1], "rollouts": [4, 1], "correct": [3, 0], "format only": [0, 0], "wrong": [1, 0], "error": [0, 1],
        "truncated": [1, 0], "accuracy": [0.5, 0.0], "reward": [0.375, None], "tokens": [1.0, 1.0], "kl": [None, 0.25],
    }  # fmt: skip


def test_rollouts_of_all_ranks_come_one_step_after_the_other(tmp_path: Path) -> None:
    folder = write(tmp_path, *(row(step=step) for step in range(3))) / "rollouts/001-from-step-000000"
    later = folder / "rank0-step-1000000.jsonl"
    later.write_text(json.dumps(row(step=1_000_000)) + "\n")
    other = [row(step=step, member=1) for step in (0, 2, 999_999)]
    (folder / "rank1-step-000000.jsonl").write_text("".join(json.dumps(record) + "\n" for record in other))
    assert [record["step"] for record in read_rollouts(tmp_path)] == [0, 0, 1, 2, 2, 999_999, 1_000_000]


def test_the_options_steps_out_and_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    run = write(tmp_path / "run", *(row(step=step) for step in range(5)))
    for steps, count in {"1:3": 3, "3:": 2, ":0": 1, ":": 5}.items():
        main(["samples", str(run), "--steps", steps, "--out", str(tmp_path / "page.html")])
        number = f"{count} rollouts of {count} steps" if count > 1 else "1 rollout of 1 step"
        assert capsys.readouterr().out == f"{number}\n{tmp_path}/page.html\n"
    assert not (run / "samples.html").exists()
    assert not opened
    main(["samples", str(run), "--open"])
    assert opened == [(run / "samples.html").as_uri()]


@pytest.mark.parametrize("command", [["samples"], ["reproduce"], ["verify", "--samples"]])
def test_a_folder_of_runs_names_its_newest_run(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("20260101-120000-bbbb", "20260102-120000-aaaa"):
        (write(tmp_path / name, row()) / "config.yaml").touch()
    with pytest.raises(SystemExit, match="2"):
        main([*command, str(tmp_path)])
    assert capsys.readouterr().err.endswith(f"give one of them, such as {tmp_path}/20260102-120000-aaaa\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["RUN/nothing"], "RUN_DIR: the folder .*nothing does not exist"),
        (["RUN/rollouts"], "has no logged rollouts; give the directory of a run"),
        (["RUN", "--out", "RUN"], "--out: .*run is a folder: give the page to write, such as .*run/samples.html"),
        (["RUN", "--steps", "7"], "--steps: must be FIRST:LAST"),
        (["RUN", "--steps", "9:"], "--steps: .* has no rollouts in the steps 9:"),
        (["RUN", "--out", "RUN/none/page.html"], "--out: cannot write .*none/page.html: No such file"),
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


def test_a_refused_page_leaves_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "run", row(), row(step=1))
    main(["samples", str(run)])
    files = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    stored = run / "rollouts/001-from-step-000000/rank0-step-000000.jsonl"
    for steps, damage in (("900:", b""), (":", b'{"step": 2}\n')):
        stored.write_bytes(files[stored] + damage)
        with pytest.raises(SystemExit, match="2"):
            main(["samples", str(run), "--steps", steps])
        stored.write_bytes(files[stored])
        assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == files


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps(row(step=1) | {"step": "1"}).encode(), r"line 2 of \S+rank0-step-000000.jsonl has step: '1'"),
        (b'{"step": 1}', r"line 2 of \S+.jsonl has no id: it is not a rollout record"),
        (b"[1]", r"line 2 of \S+.jsonl is not a rollout record: it holds \[1\]"),
        (b"\xff", r"\S+.jsonl is not UTF-8 text"),
        (json.dumps({name: value for name, value in row().items() if name != "kl"}).encode(), "has no 'kl'"),
    ],
)
def test_a_damaged_record_is_named(
    line: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path / "run", row())
    with (run / "rollouts/001-from-step-000000/rank0-step-000000.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(SystemExit, match="2"):
        main(["samples", str(run)])
    assert re.search(message, capsys.readouterr().err)


def test_the_page_refers_to_nothing_on_the_network(tmp_path: Path) -> None:
    run = write(tmp_path, row())
    main(["samples", str(run)])
    text = (run / "samples.html").read_text()
    assert not re.search(r"""(src|href)=["']""", text)
    assert "://" not in re.sub(r"/\*! https://github.com/leeoniya/uPlot .*?\*/", "", text)
