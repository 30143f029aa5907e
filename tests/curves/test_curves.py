"""The declaration of the curves: complete, without contradictions, and what is made from it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from grpo_lightning.algorithms import GRPOModule, PPOModule, SFTModule
from grpo_lightning.callbacks.tensorboard import final_curves
from grpo_lightning.commands.compare.dynamics import PANELS as REPORT_PANELS
from grpo_lightning.curves import (
    CHARTS,
    CURVES,
    PANELS,
    SECTIONS,
    Curve,
    Reduction,
    declare,
    find,
    taken_names,
    tensorboard_layout,
)
from grpo_lightning.curves.page import table, with_tables
from grpo_lightning.errors import ConfigError
from grpo_lightning.verifiers import WeightedVerifier
from tests.toy import LetterVerifier

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/metrics.md"
TITLES = [title for titles in CHARTS.values() for title in titles]
SINGLE = [name for name, curve in CURVES.items() if not curve.is_family]


# -- the declaration --------------------------------------------------------------------------------------------------


def test_no_curve_is_declared_twice() -> None:
    assert sum(len(section) for section in SECTIONS.values()) == len(CURVES)


def test_every_curve_says_what_it_is_in_one_line_of_a_table() -> None:
    for curve in CURVES.values():
        cells = (curve.meaning, curve.healthy, curve.otherwise)
        assert curve.meaning, curve.name
        assert not any("|" in cell or "\n" in cell for cell in cells), curve.name
        assert not (curve.otherwise and not curve.meaning)


def test_charts_and_panels_have_curves_and_curves_have_charts_and_panels_that_exist() -> None:
    assert len(TITLES) == len(set(TITLES))
    assert {curve.chart for curve in CURVES.values() if curve.chart} == set(TITLES)
    assert {curve.panel for curve in CURVES.values() if curve.panel} == set(PANELS)


@pytest.mark.parametrize(
    ("name", "declared"),
    [
        ("reward/mean", "reward/mean"),
        ("reward/MathVerifier", "reward/<verifier>"),
        ("reward/a/b", "reward/<verifier>"),
        ("val/reward", "val/reward"),
        ("val/reward/unsafe_sandbox", "val/reward/<verifier>"),
        ("test/accuracy", "val/accuracy"),
        ("test/pass@16", "val/pass@<k>"),
        ("val/pass@k", None),
        ("memory/teacher_peak_gib", "memory/<phase>_peak_gib"),
        ("memory/test_peak_gib", "memory/test_peak_gib"),
        ("time/teacher_s", "time/<phase>_s"),
        ("time/teacher", None),
        ("rewards/mean", None),
        ("my/reward/mean", None),
    ],
)
def test_a_logged_name_finds_its_declaration(name: str, declared: str | None) -> None:
    found = find(name)
    assert (found and found.name) == declared


@pytest.mark.parametrize("module", [GRPOModule, PPOModule, SFTModule])
def test_modules_reduce_a_curve_as_it_is_declared(module: type[GRPOModule]) -> None:
    reduced = dict.fromkeys(module.step_means, Reduction.MEAN)
    reduced |= dict.fromkeys(module.step_maxima, Reduction.MAX) | dict.fromkeys(module.step_roots, Reduction.ROOT)
    assert {name: CURVES[name].reduction for name in reduced} == reduced


def test_every_name_in_the_sources_that_looks_like_a_curve_is_declared() -> None:
    groups = {name.split("/")[0] for name in CURVES} | {"test"}
    files = [*(ROOT / "grpo_lightning").rglob("*.py"), *(ROOT / "callbacks").glob("*.py")]
    literals = {
        node.value
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    names = {text for text in literals if re.fullmatch(rf"(?:{'|'.join(groups)})/[a-z]\w*[a-z]", text)}
    assert {"reward/mean", "policy/kl", "total/wall_s", "reference/moves"} <= names
    assert {name for name in names if find(name) is None} == set()


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_is_the_one_that_the_declaration_makes() -> None:
    text = PAGE.read_text()
    assert text == with_tables(text), "run: python -m grpo_lightning.curves docs/metrics.md"


def test_the_command_writes_the_tables_and_leaves_the_text(tmp_path: Path) -> None:
    page = tmp_path / "metrics.md"
    stripped = re.sub(r"^\| `.*\n", "", PAGE.read_text(), flags=re.M)
    assert "`reward/mean` |" not in stripped
    page.write_text(stripped)
    subprocess.run([sys.executable, "-m", "grpo_lightning.curves", str(page)], check=True, cwd=ROOT)
    assert page.read_text() == PAGE.read_text()


def test_a_page_must_have_exactly_the_declared_sections() -> None:
    text = PAGE.read_text()
    with pytest.raises(ValueError, match=r"## Regard.*no section"):
        with_tables(text.replace("## Reward\n", "## Regard\n"))
    with pytest.raises(ValueError, match=r"add a heading and a table .* for: Optimizer$"):
        with_tables(text.replace("## Optimizer\n", ""))


def test_a_table_has_a_row_per_curve_with_all_of_its_cells() -> None:
    header, _, first, *rest = table(SECTIONS["Optimizer"])
    assert first == "| `optim/lr` |  | learning rate of the step's last optimizer step | follows your schedule |  |"
    assert len(rest) == len(SECTIONS["Optimizer"]) - 1
    assert {line.count("|") for line in (header, first, *rest)} == {6}


# -- what else is made from it ----------------------------------------------------------------------------------------


def test_each_curve_is_matched_by_the_expression_of_its_own_chart_alone() -> None:
    layout = {title: curves for charts in tensorboard_layout(CURVES).values() for title, curves in charts.items()}
    assert list(layout) == TITLES
    members = {"reward/MathVerifier": "Each verifier", "val/pass@4": "Accuracy", "time/mine_s": "Seconds per step"}
    for name, chart in {name: CURVES[name].chart for name in SINGLE}.items() | members.items():
        matching = [title for title, curves in layout.items() if re.match(curves, name)]
        assert matching == ([chart] if chart else []), name


def test_charts_that_would_be_empty_are_omitted() -> None:
    layout = tensorboard_layout(["reward/mean", "val/accuracy", "epoch"])
    assert {category: list(charts) for category, charts in layout.items()} == {
        "Reward": ["Reward"], "Validation": ["Accuracy"]
    }  # fmt: skip
    assert tensorboard_layout(["epoch"]) == {}


def test_the_report_shows_the_highest_of_all_peaks_and_smooths_what_single_steps_log() -> None:
    *_, memory = REPORT_PANELS
    assert {"memory/update_peak_gib", "memory/<phase>_peak_gib"} < {curve.name for curve in memory.curves}
    assert "memory/reserved_gib" not in {curve.name for curve in memory.curves}
    assert [panel.title for panel in REPORT_PANELS if not panel.smooth] == ["validation accuracy", "peak memory (GiB)"]
    assert [panel.title for panel in REPORT_PANELS if panel.is_accuracy] == ["validation accuracy"]


def test_the_curves_beside_the_hyper_parameters_are_single_ones() -> None:
    assert {"val/accuracy", "reward/mean", "policy/kl"} <= set(final_curves()) <= set(SINGLE)


@pytest.mark.parametrize("name", sorted(taken_names("reward/")))
def test_a_part_of_a_verifier_cannot_have_the_name_of_a_curve(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name!r} cannot be a name: reward/{name} is another curve"):
        WeightedVerifier({name: LetterVerifier()})


def test_the_names_taken_are_those_of_single_reward_curves() -> None:
    assert {"mean", "unsafe_sandbox", "correct_after_refinement"} <= taken_names("reward/")
    assert not {"<verifier>", "LetterVerifier", "accuracy"} & taken_names("reward/")
    WeightedVerifier({"accuracy": LetterVerifier()})


# -- a curve of ones own ----------------------------------------------------------------------------------------------

MINE = Curve("completion/mine", "share", Reduction.MEAN, "Truncated", "mine", bar="mine", final=True)


@pytest.mark.usefixtures("_own_curves")
def test_a_declared_curve_is_found_charted_and_final() -> None:
    assert find("completion/mine") is None
    before = tensorboard_layout(CURVES)["Completions"]["Truncated"]
    assert declare(MINE) is declare(MINE) is find("completion/mine") is MINE
    assert tensorboard_layout(CURVES)["Completions"]["Truncated"] == f"{before}|^{MINE.pattern.pattern}$"
    assert "completion/mine" in final_curves()
    declare(replace(MINE, name="reward/mine", chart=None, bar=None))
    with pytest.raises(ConfigError, match="'mine' cannot be a name: reward/mine is another curve"):
        WeightedVerifier({"mine": LetterVerifier()})


@pytest.mark.usefixtures("_own_curves")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "reward/mean"}, "curve reward/mean: another curve has this name: rename it"),
        ({"meaning": "yours"}, "curve completion/mine: another curve has this name: rename it"),
        ({"name": "completion/yours"}, "curve completion/yours: bar 'mine' is the label of another curve: change it"),
        ({"name": "a/b", "bar": None, "chart": "Trunk"}, "curve a/b: there is no chart 'Trunk': give one of Reward, "),
        ({"name": "a/b", "bar": None, "panel": "mean"}, "curve a/b: there is no panel 'mean': give one of mean reward"),
    ],
)
def test_a_curve_that_cannot_be_declared_is_refused_and_changes_nothing(changes: dict[str, str], sentence: str) -> None:
    declare(MINE)
    declared = dict(CURVES)
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}"):
        declare(replace(MINE, **changes))
    assert declared == CURVES
