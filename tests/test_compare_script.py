"""``make compare``: what is run, in which order, what is not run again; and the budget that ends the runs."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from grpo_lightning.algorithms import SFTModule
from grpo_lightning.callbacks import RunCheckpoint, TokenBudget
from grpo_lightning.cli.grpo_cli import parse
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import PolicyConfig
from tests.toy import LetterVerifier, Watch, fit, grpo, llama_alone

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        yield importlib.import_module("compare")


@llama_alone
def test_a_budget_ends_the_run_behind_the_step_that_used_it_up(model_path: str, tmp_path: Path) -> None:
    free, saving = Watch(), {"enable_checkpointing": True}
    fit(tmp_path, grpo(model_path), 6, callbacks=[free])
    used = [sum(len(rollout.completion.token_ids) for rollout in batch.attempts) for batch in free.batches]
    for budget, steps in ((1, 1), (sum(used[:2]), 2), (sum(used[:2]) + 1, 3)):
        watch = Watch()
        fit(tmp_path, grpo(model_path), 6, callbacks=[watch, TokenBudget(budget), RunCheckpoint()], **saving)
        assert len(watch.batches) == steps
    # Resumed, it makes no step more, unless the budget has been raised.
    for more, steps in ((0, 0), (1, 1)):
        watch, callbacks = Watch(), [TokenBudget(sum(used[:3]) + more), RunCheckpoint()]
        last = tmp_path / "checkpoints/last.ckpt"
        fit(tmp_path, grpo(model_path), 6, callbacks=[watch, *callbacks], ckpt_path=last, **saving)
        assert len(watch.batches) == steps


@llama_alone
def test_a_budget_needs_something_to_count(model_path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokens: must be at least 1, not 0"):
        TokenBudget(0)
    module = SFTModule(PolicyConfig(path=model_path), [LetterVerifier()])
    with pytest.raises(ConfigError, match="SFTModule generates nothing to learn from"):
        fit(tmp_path, module, 2, callbacks=[TokenBudget(10)])


METHODS = ["sft", "sft_converged", "ppo", "grpo", "grpo_no_std", "grpo_group10", "refine_distill", "refine_in_context"]


# What a smoke run overrides is the same for all methods.
@pytest.mark.parametrize(
    ("name", "smoke"), [*((name, False) for name in METHODS), ("sft_converged", True), ("grpo", True)]
)
def test_every_method_is_a_config_that_can_be_run(
    script: ModuleType, name: str, smoke: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    plan, jobs = script.parse(["--runs", str(tmp_path), "--tokens", "5000", *(["--smoke"] if smoke else [])])
    method = next(method for method in plan.methods if method.name == name)
    shutil.copytree(ROOT / "configs/tiny_decoder", plan.folder("sft", 2) / "policy")
    (subcommand, *arguments), tested = plan.commands(method, 2)
    assert subcommand == "fit"
    assert tested[:3] == ["test", "--config", str(tmp_path / name / "seed-2" / "config.yaml")]
    parsed = parse(arguments)
    assert parsed.config.seed_everything == 2
    assert parsed.config.run_dir == str(tmp_path / name / "seed-2")
    assert (parsed.config.warm_start is None) or not method.samples
    starts_from = parsed.config.model.init_args.policy
    assert (starts_from.path == "configs/tiny_decoder") is (name == "sft")
    assert starts_from.init == ("random" if name == "sft" else "pretrained")
    budgets = [one for one in parsed.trainer.callbacks if isinstance(one, TokenBudget)]
    assert [budget.tokens for budget in budgets] == ([5000] if method.samples else [])
    assert parsed.datamodule is not None
    assert parsed.datamodule.group_size == (10 if name == "grpo_group10" else 8)
    assert (parsed.datamodule.refinement is not None) is name.startswith("refine")
    assert (parsed.trainer.max_steps == 2) is smoke
    assert jobs == 2


def test_options_choose_what_is_run(script: ModuleType, tmp_path: Path) -> None:
    plan, jobs = script.parse(["--methods", "grpo", "--seeds", "4", "5", "--jobs", "3", "--out", str(tmp_path)])
    assert [method.name for method in plan.methods] == ["sft", "grpo"]
    assert (plan.seeds, jobs) == ((4, 5), 3)
    assert plan.compare()[:3] == ["compare", "SFT (warm start)=runs/quickstart/sft", "GRPO=runs/quickstart/grpo"]
    assert str(tmp_path) in plan.compare()
    whole, _ = script.parse([])
    assert len(whole.methods) == 8
    assert whole.seeds == (1, 2, 3)
    assert script.parse(["--smoke"])[0].seeds == (1,)


def test_the_warm_start_is_stopped_as_its_own_config_says(script: ModuleType) -> None:
    config = yaml.safe_load((ROOT / "configs/quickstart_sft.yaml").read_text())
    assert config["trainer"]["callbacks"] == [yaml.safe_load(script.STUDIES["quickstart"].stops["sft"])]


@pytest.mark.parametrize("name", ["untouched", "sft", "ppo", "grpo", "refine_distill", "sft_grpo"])
def test_every_method_of_the_real_model_is_its_config_with_another_model_and_other_sizes(
    script: ModuleType, name: str, tmp_path: Path, tiny_model: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    few = ["--data.prompts_per_step", "3", "--trainer.devices", "1", "--trainer.accelerator", "cpu"]
    options = ["--study", "lfm_gsm8k", "--runs", str(tmp_path), "--model", tiny_model("llama")]
    plan, jobs = script.parse([*options, "--methods", name, "--", *few])
    assert [method.name for method in plan.methods] == (["sft", "sft_grpo"] if name == "sft_grpo" else [name])
    start = plan.folder("sft", 1) / "policy"
    shutil.copytree(ROOT / "configs/tiny_decoder", start)
    first, *rest = plan.commands(plan.methods[-1], 1)
    assert [first[0], *(command[0] for command in rest)] == (["test"] if name == "untouched" else ["fit", "test"])
    parsed = parse(first[1:])
    assert parsed.config.model.init_args.policy.path == (str(start) if name == "sft_grpo" else tiny_model("llama"))
    assert parsed.config.trainer.max_steps == 500
    assert parsed.datamodule is not None
    assert parsed.datamodule.prompts_per_step == 3
    assert (parsed.datamodule.refinement is not None) is (name == "refine_distill")
    assert jobs == 1


def test_an_untrained_model_is_tested_once(script: ModuleType) -> None:
    plan, _ = script.parse(["--study", "lfm_gsm8k", "--methods", "untouched", "sft_grpo", "--seeds", "1", "2"])
    order = [(method.name, seed) for method, seed in plan.order()]
    assert order == [("untouched", 1), ("sft", 1), ("sft", 2), ("sft_grpo", 1), ("sft_grpo", 2)]


def test_a_method_that_the_study_lacks_is_refused(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.parse(["--study", "lfm_gsm8k", "--methods", "sft_converged"])
    assert "lfm_gsm8k has untouched, sft, ppo, grpo, refine_distill, sft_grpo" in capsys.readouterr().err


def test_it_runs_whole_and_does_nothing_twice(
    script: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Paths are relative to the root of the repository, wherever the script is called from.
    monkeypatch.chdir(tmp_path)
    runs, out = (os.path.relpath(tmp_path / name, ROOT) for name in ("runs", "out"))
    options = ["--smoke", "--methods", "grpo", "--runs", runs, "--out", out]
    # The files of an interrupted run are removed.
    left = tmp_path / "runs/grpo/seed-1/config.yaml"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    script.run(*script.parse(options))
    text = (tmp_path / "out/report.md").read_text()
    assert "SFT (warm start) | 1 |" in text
    assert "GRPO vs SFT (warm start)" in text
    written = left.stat().st_mtime_ns
    capfd.readouterr()
    script.run(*script.parse(options))
    assert left.stat().st_mtime_ns == written
    assert "grpo fit ..." not in capfd.readouterr().out
    with pytest.raises(SystemExit, match="was written by a different command"):
        script.run(*script.parse([*options, "--tokens", "7"]))


def test_self_distillation_is_compared_with_what_samples_as_much(script: ModuleType) -> None:
    plan, _ = script.parse(["--study", "self_distillation", "--seeds", "1"])
    sampling = [method for method in plan.methods if method.samples]
    assert {method.start for method in sampling} == {"sft"}
    for method in sampling:
        fit, _ = plan.commands(method, 1)
        assert "TokenBudget, init_args: {tokens: 220000}" in fit[fit.index("--trainer.callbacks") + 1]
        assert (ROOT / fit[2]).is_file()
