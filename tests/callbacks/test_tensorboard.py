"""What TensorBoard shows of a run, asked of a real TensorBoard over HTTP; and the other loggers."""

from __future__ import annotations

import csv
import html
import json
import math
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard import default, program
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html

from grpo_lightning.__main__ import main
from grpo_lightning.algorithms import SFTModule
from grpo_lightning.callbacks import AdaptiveKL, TensorBoardExtras
from grpo_lightning.callbacks.tensorboard import HYPERPARAMETERS, final_curves, samples_table
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import PolicyConfig
from grpo_lightning.types import Completion, FinishReason, Prompt, Verdict
from tests.cli.test_cli import few, only_run
from tests.toy import LetterVerifier, adam, experience, fit, grpo, same

ROOT = Path(__file__).parents[2]
VALIDATE: dict[str, Any] = {"limit_val_batches": 1, "val_check_interval": 1, "log_every_n_steps": 1}


def board(folder: Path) -> TensorBoardLogger:
    return TensorBoardLogger(str(folder), name="", version="", default_hp_metric=False)


@pytest.fixture(scope="module")
def runs(tiny_model: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GRPO run with a reference, and an SFT run."""
    root, path = tmp_path_factory.mktemp("runs"), tiny_model("lfm2")
    extras = [AdaptiveKL(), TensorBoardExtras(every_n_steps=2)]
    fit(root, grpo(path, beta=0.1), 3, callbacks=extras, logger=board(root / "grpo"), **VALIDATE)
    module = SFTModule(policy=PolicyConfig(path=path), verifiers=[LetterVerifier()], optimizer=adam)
    fit(root, module, 2, callbacks=[TensorBoardExtras()], logger=board(root / "sft"), **VALIDATE)
    return root


@pytest.fixture(scope="module")
def ask(runs: Path) -> Callable[..., Any]:
    """Asks TensorBoard's own server, the one that its pages ask."""
    server = program.TensorBoard(plugins=default.get_plugins())
    server.configure(argv=["", "--logdir", str(runs), "--port", "0", "--load_fast", "false"])
    url = server.launch()

    def get(path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url.rstrip('/')}/data/{path}", data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    # It reads the files in a thread of its own.
    until = time.monotonic() + 120
    while len(get("plugin/scalars/tags")) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    return get


def test_the_curves_are_there(ask: Callable[..., Any]) -> None:
    tags = ask("plugin/scalars/tags")
    assert {"reward/mean", "policy/kl", "val/accuracy", "completion/length_mean"} <= set(tags["grpo"])
    assert "reward/mean" not in tags["sft"]


def test_custom_scalars_have_a_layout_that_finds_every_kind_of_curve(ask: Callable[..., Any]) -> None:
    layout = ask("plugin/custom_scalars/layout")
    categories = {category["title"]: category["chart"] for category in layout["category"]}
    assert list(categories) == ["Reward", "Policy", "Completions", "Time", "Validation"], "no peaks: no Memory"
    matched = set()
    for charts in categories.values():
        for chart in charts:
            shown = set()
            for curve in chart["multiline"]["tag"]:
                for run in ("grpo", "sft"):
                    answer = ask(f"plugin/custom_scalars/scalars?run={run}&tag={urllib.request.quote(curve)}")
                    assert answer["regex_valid"]
                    shown |= {(run, name) for name in answer["tag_to_events"]}
            assert shown, f"the chart {chart['title']} is empty"
            matched |= {name for run, name in shown if run == "grpo"}
    titles = {chart["title"] for charts in categories.values() for chart in charts}
    assert {"KL", "Reward", "Accuracy"} <= titles
    assert "Values" not in titles, "no run has a critic"
    left_out = set(ask("plugin/scalars/tags")["grpo"]) - matched
    assert left_out == {"epoch", "optim/skipped_steps", "val/reward"}


def test_hyper_parameters_stand_beside_the_last_values_of_the_curves(ask: Callable[..., Any], runs: Path) -> None:
    experiment = ask("plugin/hparams/experiment", {"experimentName": "", "includeMetrics": True})
    assert {column["name"] for column in experiment["hparamInfos"]} == set(HYPERPARAMETERS)
    assert {metric["name"]["tag"] for metric in experiment["metricInfos"]} == set(final_curves())
    request = {
        "experimentName": "", "startIndex": 0, "sliceSize": 10,
        "allowedStatuses": ["STATUS_SUCCESS", "STATUS_RUNNING", "STATUS_FAILURE", "STATUS_UNKNOWN"],
        "colParams": [{"hparam": column["name"]} for column in experiment["hparamInfos"]],
    }  # fmt: skip
    answer = ask("plugin/hparams/session_groups", request)["sessionGroups"]
    groups = {group["sessions"][0]["name"]: group for group in answer}
    wanted = {
        "algorithm": "GRPOModule", "task": "ToyTask", "lr": 0.01, "beta": 0.1, "group_size": 4, "prompts_per_step": 3,
        "max_new_tokens": 16, "temperature": 1.0, "epsilon": 0.2, "objective": "clip", "verifiers": "LetterVerifier",
        "refinement": "none", "lora_r": 0, "seed": 1,
    }  # fmt: skip
    assert wanted.items() <= groups["grpo"]["hparams"].items()
    assert groups["sft"]["hparams"]["algorithm"] == "SFTModule"
    assert "beta" not in groups["sft"]["hparams"]
    assert all(group["sessions"][0]["status"] == "STATUS_SUCCESS" for group in groups.values())
    values = {one["name"]["tag"]: one["value"] for one in groups["grpo"]["metricValues"]}
    events = EventAccumulator(str(runs / "grpo")).Reload()
    for name in final_curves():
        assert values[name] == pytest.approx(events.Scalars(name)[-1].value)


def test_samples_are_a_table_in_the_text_tab(ask: Callable[..., Any]) -> None:
    assert ask("plugin/text/tags") == {"grpo": ["samples/text_summary"]}
    texts = ask("plugin/text/text?run=grpo&tag=samples/text_summary")
    assert [text["step"] for text in texts] == [0, 2]
    for text in texts:
        # A head and six rollouts, inside of a table of TensorBoard's own.
        assert text["text"].count("<tr>") == 1 + 1 + 3 * 2
        assert all(f"<strong>{kind}</strong>" in text["text"] for kind in ("best", "worst", "random"))


def test_histograms_are_of_rewards_advantages_and_lengths(ask: Callable[..., Any]) -> None:
    tags = ask("plugin/histograms/tags")
    assert set(tags["grpo"]) == {"rollouts/reward", "rollouts/advantage", "rollouts/length"}
    histogram = ask("plugin/histograms/histograms?run=grpo&tag=rollouts/length")
    assert [step for _, step, _ in histogram] == [0, 2]
    assert sum(count for _, _, count in histogram[0][2]) == 12


OFF: dict[str, tuple[dict[str, Any], str]] = {
    "layout": ({"layout": False}, "custom_scalars__config__"),
    "hparams": ({"hparams": False}, "_hparams_/session_start_info"),
    "samples": ({"samples": 0}, "samples/text_summary"),
    "histograms": ({"histograms": False}, "rollouts/reward"),
}


@pytest.mark.parametrize("name", OFF)
def test_each_part_can_be_switched_off(name: str, tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    options, tag = OFF[name]
    fit(tmp_path, grpo(tiny_model("llama")), 1, callbacks=[TensorBoardExtras(**options)], logger=board(tmp_path))
    events = EventAccumulator(str(tmp_path)).Reload()
    found = {*events.Tags()["histograms"], *events.summary_metadata}
    assert tag not in found
    assert {other for _, other in OFF.values()} - {tag} <= found


@pytest.mark.parametrize("options", [{"samples": -1}, {"every_n_steps": 0}])
def test_options_out_of_range_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"tensorboard.{next(iter(options))}: must be"):
        TensorBoardExtras(**options)


def test_the_extras_change_nothing(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    path = tiny_model("lfm2")
    told = fit(tmp_path, grpo(path), 2, callbacks=[TensorBoardExtras(every_n_steps=1)], logger=board(tmp_path))
    assert same(fit(tmp_path, grpo(path), 2), told)


HOSTILE = (
    "<script>alert(1)</script> | a | b\n# head *bold* `code` [x](javascript:alert(1)) <img src=x onerror=alert(1)> &lt;"
)


def test_what_a_model_says_stays_text_in_the_table() -> None:
    batch = experience([(1.0, FinishReason.STOP), (0.0, FinishReason.LENGTH), (math.nan, FinishReason.STOP)])
    said = [
        replace(
            one,
            prompt=Prompt([{"role": "user", "content": HOSTILE}]),
            completion=Completion([1], HOSTILE, one.completion.finish_reason, [0.0], [0.0]),
            verdict=Verdict(one.verdict.correct, True, HOSTILE, error=HOSTILE if math.isnan(one.reward) else None),
        )
        for one in batch.attempts
    ]
    table = samples_table(replace(batch, attempts=said, advantages=torch.tensor([1.0, -1.0, 0.0])), 3, 0)
    page = markdown_to_safe_html(table)
    assert page.count("<tr>") == 1 + 2 + 2 + 3, "best and worst are among those with a verdict"
    assert page.count("<td") == 3 * 7
    for tag in ("<script", "<img", "<a ", "<h1", "<em", "<code"):
        assert tag not in page
    shown = html.unescape(page)
    assert all(line in shown for line in HOSTILE.split("\n"))
    assert "tokens, truncated" in shown
    assert "error: <script>" in shown


def test_where_each_token_has_its_own_advantage_the_table_has_their_mean() -> None:
    batch = experience([(1.0, FinishReason.STOP), (0.0, FinishReason.STOP)])
    own_NT = torch.tensor([[3.0, 99.0, 99.0], [1.0, -2.0, 99.0]])  # of one token, and of two
    table = samples_table(replace(batch, advantages=own_NT), 1, 0)
    assert "advantage +3.00" in table
    assert "advantage -0.50" in table


def test_long_texts_lose_their_middle() -> None:
    batch = experience([(1.0, FinishReason.STOP)])
    long = Completion([1], "x" * 5000 + "the end", FinishReason.STOP, [0.0], [0.0])
    table = samples_table(replace(batch, attempts=[replace(batch.attempts[0], completion=long)]), 1, 0)
    assert table.count("x" * 400) == 3
    assert "the end" in table
    assert len(table) < 3 * 1000


# -- other loggers ----------------------------------------------------------------------------------------------------


def fit_by_yaml(path: str, folder: Path, logger: str) -> Path:
    """Two steps of a shipped config with a logger given in a YAML file of its own."""
    config = folder / "logger.yaml"
    config.write_text(f"trainer: {{logger: {logger}}}\n")
    options = few(folder / "runs", warm_start="null", **{"model.init_args.policy.path": path})
    main(["fit", "--config", "configs/quickstart.yaml", "--config", str(config), *options])
    return only_run(folder / "runs", "quickstart")


@pytest.fixture
def llama(tiny_model: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(ROOT)
    return tiny_model("llama")


def test_csv_by_yaml_alone_goes_into_the_run_dir(llama: str, tmp_path: Path) -> None:
    run = fit_by_yaml(llama, tmp_path, "{class_path: CSVLogger}")
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert {"reward/mean", "policy/loss", "val/accuracy"} <= rows[0].keys()
    assert [row["step"] for row in rows if row["reward/mean"]] == ["0", "1"]
    assert not list(run.glob("events*"))
    assert (run / "rollouts").is_dir()


def test_several_loggers_by_yaml_alone(llama: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    loggers = (
        f"[{{class_path: CSVLogger, init_args: {{save_dir: {elsewhere}}}}}, "
        "{class_path: CSVLogger, init_args: {name: mine}}, {class_path: TensorBoardLogger}]"
    )
    run = fit_by_yaml(llama, tmp_path, loggers)
    assert list(elsewhere.glob("lightning_logs/version_0/metrics.csv"))
    assert list(run.glob("mine/version_0/metrics.csv")), "it has a name, so it keeps a folder"
    assert not (run / "lightning_logs").exists()
    events = EventAccumulator(str(run)).Reload()
    assert "reward/mean" in events.Tags()["scalars"]
    assert "hp_metric" not in events.Tags()["scalars"]
    assert {"samples/text_summary", "custom_scalars__config__"} <= set(events.Tags()["tensors"])


def test_weights_and_biases_offline_by_yaml_alone(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed", exc_type=ImportError)
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = fit_by_yaml(llama, tmp_path, "{class_path: WandbLogger, init_args: {offline: true}}")
    wandb.finish()
    (log,) = run.glob("wandb/offline-run-*/*.wandb")
    written = log.read_bytes()
    assert b"reward/mean" in written
    assert b"val/accuracy" in written


def test_mlflow_in_a_folder_by_yaml_alone(llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed", exc_type=ImportError)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    options = f"{{tracking_uri: 'file:{tmp_path}/mlruns', experiment_name: runs}}"
    fit_by_yaml(llama, tmp_path, f"{{class_path: MLFlowLogger, init_args: {options}}}")
    (curve,) = tmp_path.glob("mlruns/*/*/metrics/reward/mean")
    assert len(curve.read_text().splitlines()) == 2
