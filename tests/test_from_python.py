"""The public names, and what a program does with a module before and after it trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import grpo_lightning as grpo
from grpo_lightning.algorithms import DistillationModule
from grpo_lightning.errors import ConfigError
from grpo_lightning.models import TeacherConfig
from grpo_lightning.rollout.generate import generate_texts
from tests.toy import LetterVerifier, adam, rollouts, trainer

SAMPLING = grpo.SamplingParams(temperature=0.0, max_new_tokens=6)


def test_every_public_name_is_there() -> None:
    assert {"GRPOModule", "Tabular", "MathVerifier", "default_callbacks", "__version__"} <= set(dir(grpo))
    assert all(getattr(grpo, name) is not None for name in grpo.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'GRPOModul'"):
        _ = grpo.GRPOModul
    assert grpo.GRPOModule is __import__("grpo_lightning.algorithms", fromlist=["x"]).GRPOModule


def module_of(path: str, **options: object) -> grpo.GRPOModule:
    return grpo.GRPOModule(policy=path, verifiers=grpo.MathVerifier(), beta=0.0, **options)


def test_a_run_from_python_is_like_one_of_the_command_line(
    tiny_model: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_model("llama")
    module = module_of(path, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5))
    before = module.generate(["1 + 1?", [{"role": "user", "content": "2 + 2?"}]], SAMPLING)
    rows = [{"prompt": f"{number} + 1?", "answer": str(number + 1)} for number in range(8)]

    def length(completion: str, answer: str) -> float:
        return len(completion) / 10

    module.verifiers = grpo.GRPOModule(policy=path, verifiers=length).verifiers
    data = grpo.RolloutDataModule(
        grpo.Tabular(rows, val_size=2), prompts_per_step=2, group_size=4, sampling=grpo.SamplingParams(max_new_tokens=6)
    )
    trainer = L.Trainer(
        max_steps=2, accelerator="cpu", logger=False, callbacks=grpo.default_callbacks(), default_root_dir=tmp_path,
        check_val_every_n_epoch=None, val_check_interval=2, num_sanity_val_steps=0, limit_val_batches=1,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert any((tmp_path / "rollouts").rglob("*.jsonl"))
    out = capsys.readouterr().out
    assert f"grpo samples {tmp_path} --open" in out
    trainer.save_checkpoint(tmp_path / "my.ckpt")
    after = module.generate(["1 + 1?", "2 + 2?"], SAMPLING)
    loaded = grpo.GRPOModule.load_from_checkpoint(tmp_path / "my.ckpt", policy=path, verifiers=length, beta=0.0)
    for name, parameter in module.policy.named_parameters():
        torch.testing.assert_close(dict(loaded.policy.named_parameters())[name], parameter, rtol=0, atol=0)
    assert loaded.generate(["1 + 1?", "2 + 2?"], SAMPLING) == after
    fresh = module_of(path)
    assert fresh.generate(["1 + 1?", "2 + 2?"], SAMPLING) == before
    options: dict[str, Any] = {"policy": path, "verifiers": length, "beta": 0.0}
    asked: list[str] = []
    named = {"map_location": lambda storage, place: asked.append(place) or storage, "strict": False}
    grpo.GRPOModule.load_from_checkpoint(tmp_path / "my.ckpt", **named, **options)
    assert set(asked) == {"cpu"}
    for refused in ({"strict": True}, {"hparams_file": "x.yaml"}, {"weights_only": False}):
        with pytest.raises(ConfigError, match="load_from_checkpoint: omit hparams_file, strict=True"):
            grpo.GRPOModule.load_from_checkpoint(tmp_path / "my.ckpt", **refused, **options)
    with pytest.raises(ConfigError, match="of another policy"):
        grpo.GRPOModule.load_from_checkpoint(tmp_path / "my.ckpt", policy=tiny_model("qwen3"), verifiers=length)


@pytest.mark.parametrize("kind", [grpo.PPOModule, DistillationModule])
def test_a_module_with_further_models_generates_and_loads_without_them(
    tiny_model: Callable[[str], str], tmp_path: Path, kind: Any
) -> None:
    path = tiny_model("llama")
    more = {"teacher": TeacherConfig(path)} if kind is DistillationModule else {}
    options = {"policy": path, "verifiers": LetterVerifier(), "beta": 0.0, "optimizer": adam} | more
    module = kind(**options)
    before = module.generate("1 + 1?", SAMPLING)
    run = trainer(tmp_path, 1)
    run.fit(module, datamodule=rollouts())
    run.save_checkpoint(tmp_path / "my.ckpt")
    loaded = kind.load_from_checkpoint(tmp_path / "my.ckpt", **options)
    for name, parameter in module.policy.named_parameters():
        assert torch.equal(dict(loaded.policy.named_parameters())[name], parameter)
    assert kind(**options).generate("1 + 1?", SAMPLING) == before


def test_generate_takes_one_text_or_many(tiny_model: Callable[[str], str]) -> None:
    module = module_of(tiny_model("llama"))
    sampling = grpo.SamplingParams(temperature=1.0, max_new_tokens=8)
    alone = module.generate("1 + 1?", sampling, seed=3)
    assert isinstance(alone, str)
    assert module.generate(["1 + 1?"], sampling, seed=3) == [alone]
    assert module.generate(["1 + 1?", "5?"], sampling, seed=3)[0] == alone
    assert module.generate("1 + 1?", sampling, seed=4) != alone
    assert module.generate([]) == []
    assert generate_texts(module.policy, ["1 + 1?"], sampling, seed=3) == [alone]


def test_each_run_has_callbacks_of_its_own() -> None:
    first, second = grpo.default_callbacks(), grpo.default_callbacks()
    assert [type(callback).__name__ for callback in first] == [
        "HealthCheck", "StepProgressBar", "RunSummary", "RolloutLogger", "NotebookView"
    ]  # fmt: skip
    assert not set(map(id, first)) & set(map(id, second))
