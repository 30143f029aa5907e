"""What TensorBoard shows of a run besides its curves: layout, hyper-parameters, samples, histograms."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams as hparams_summaries

from grpo_lightning.algorithms import OnlineModule, PolicyModule, policy_module
from grpo_lightning.curves import CURVES, tensorboard_layout
from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout import Experience, RolloutDataModule, RunCallback, StepEnd
from grpo_lightning.rollout.experience import Outcome

from .shown import shown

_WORD, _NUMBER = "", 0.0  # an example of each type
HYPERPARAMETERS: dict[str, str | float] = {
    "algorithm": _WORD, "task": _WORD, "lr": _NUMBER, "beta": _NUMBER, "group_size": _NUMBER,
    "prompts_per_step": _NUMBER, "temperature": _NUMBER, "max_new_tokens": _NUMBER, "epsilon": _NUMBER,
    "objective": _WORD, "advantage": _WORD, "aggregation": _WORD, "updates_per_rollout": _NUMBER,
    "minibatches_per_update": _NUMBER, "refinement": _WORD, "verifiers": _WORD, "policy": _WORD, "lora_r": _NUMBER,
    "optimizer": _WORD, "max_grad_norm": _NUMBER, "precision": _WORD, "seed": _NUMBER,
}  # fmt: skip
"""Columns of the hparams tab; a run leaves out what it does not have. All of a run's options are in its config.yaml."""


def final_curves() -> tuple[str, ...]:
    """Curves whose last value is shown next to the hyper-parameters."""
    return tuple(name for name, curve in CURVES.items() if curve.final)


class TensorBoardExtras(RunCallback):
    """Gives TensorBoard more than curves. With other loggers it does nothing.

    - custom scalars: charts of the curves that belong together, of those that the run has logged;
    - hparams: the run's options with the last values of its main curves;
    - text: the best, the worst and random rollouts of a step, as a table;
    - histograms of rewards, advantages and lengths (of the first attempts on the first rank).

    Args:
        layout: write the layout of the custom scalars tab.
        hparams: write the hyper-parameters.
        samples: rollouts of each kind in the table of samples; 0 writes none.
        every_n_steps: between samples, and between histograms.
        histograms: write histograms.

    Raises:
        ConfigError: a value out of its range.
    """

    def __init__(
        self,
        layout: bool = True,
        hparams: bool = True,
        samples: int = 2,
        every_n_steps: int = 10,
        histograms: bool = True,
    ) -> None:
        if samples < 0:
            raise ConfigError(f"tensorboard.samples: must be 0 (none) or more, not {samples}")
        if every_n_steps < 1:
            raise ConfigError(f"tensorboard.every_n_steps: must be at least 1, not {every_n_steps}")
        self.layout = layout
        self.hparams = hparams
        self.samples = samples
        self.every_n_steps = every_n_steps
        self.histograms = histograms
        self._session_open = False
        self._logged: set[str] = set()
        self.reset()

    def reset(self) -> None:
        self._options: dict[str, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the options as they are configured: other callbacks move some, such as ``beta``, in training."""
        if not self._options:
            self._options = hyperparameters(trainer, policy_module(pl_module, self), self.data_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._session_open = False
        self._logged = set()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._write_layout(trainer)

    def on_step_end(self, trainer: pl.Trainer, module: pl.LightningModule, end: StepEnd) -> None:
        writers = _writers(trainer)
        if not writers:
            return
        if self.hparams and not self._session_open:
            self._write_hparams(trainer, end=False)
        if end.experience is not None and end.step % self.every_n_steps == 0:
            for writer in writers:
                if self.histograms:
                    _write_histograms(writer, end.experience, end.step)
                if self.samples:
                    writer.add_text("samples", samples_table(end.experience, self.samples, end.step), end.step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write_layout(trainer)
        if self._session_open:
            self._write_hparams(trainer, end=True)

    def _write_layout(self, trainer: pl.Trainer) -> None:
        """Write the charts of what has been logged; again when new curves appear, for the last one counts."""
        if not self.layout or self._logged.issuperset(trainer.logged_metrics):
            return
        self._logged.update(trainer.logged_metrics)
        charts = {
            category: {title: ["Multiline", [curves]] for title, curves in charts.items()}
            for category, charts in tensorboard_layout(self._logged).items()
        }
        for writer in _writers(trainer):
            writer.add_custom_scalars(charts)

    def _write_hparams(self, trainer: pl.Trainer, end: bool) -> None:
        """Open the session of the hparams tab, or close it. The tab reads its metrics from the curves."""
        # The tab takes its columns from the first run that it meets, so all runs name the same ones.
        columns, _, _ = hparams_summaries(HYPERPARAMETERS, dict.fromkeys(final_curves(), 0.0))
        _, opened, closed = hparams_summaries(self._options, {})
        self._session_open = not end
        for writer in _writers(trainer):
            for summary in [closed] if end else [columns, opened]:
                writer._get_file_writer().add_summary(summary)


def _writers(trainer: pl.Trainer) -> list[Any]:
    """The SummaryWriters to write to: none but on the first rank."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


# -- hyper-parameters -------------------------------------------------------------------------------------------------


def hyperparameters(trainer: pl.Trainer, module: PolicyModule, data: RolloutDataModule) -> dict[str, Any]:
    """The options by which runs usually differ: those of :data:`HYPERPARAMETERS` that this run has."""
    policy, optimizer = module.policy_config, trainer.optimizers[0]
    shown = {
        "algorithm": type(module).__name__,
        "task": type(data.task).__name__,
        "verifiers": ", ".join(module.verifiers),
        "policy": str(policy.path),
        "lora_r": 0 if policy.lora is None else policy.lora.r,
        "optimizer": type(optimizer).__name__,
        "lr": optimizer.defaults.get("lr"),
        "prompts_per_step": data.prompts_per_step,
        "group_size": data.group_size,
        "temperature": data.sampling.temperature,
        "max_new_tokens": data.sampling.cap,
        "refinement": "none" if data.refinement is None else data.refinement.mode,
        "seed": data.seed,
        "precision": str(trainer.precision),
    }
    options = vars(module)
    if isinstance(module, OnlineModule):
        options = options | vars(module.rollout_loss) | vars(module.rollout_loss.objective)
    # An objective or advantage is shown by its name.
    shown |= {
        name: getattr(options[name], "name", options[name])
        for name in HYPERPARAMETERS
        if name not in shown and name in options
    }
    return {name: value for name, value in shown.items() if isinstance(value, (bool, int, float, str))}


# -- rollouts ---------------------------------------------------------------------------------------------------------


def _write_histograms(writer: Any, experience: Experience, step: int) -> None:
    count, outcomes = experience.first, experience.outcomes
    values = {
        "rollouts/reward": torch.tensor([outcome.reward for outcome in outcomes]),
        "rollouts/length": torch.tensor([float(outcome.tokens) for outcome in outcomes]),
    }
    advantages = [own for row in range(count) if (own := experience.row_advantages(row)) is not None]
    if advantages:
        values["rollouts/advantage"] = torch.cat(advantages)
    for name, tensor in values.items():
        finite = tensor[tensor.isfinite()]
        if len(finite):
            writer.add_histogram(name, finite.float().cpu(), step)


def samples_table(experience: Experience, count: int, seed: int) -> str:
    """The best, the worst and random first attempts (or episodes) of a step as a table in Markdown.

    What they say is only shown. Of an episode, that is its last turn.
    """
    rows = shown(experience)
    judged = sorted(
        (row for row, one in enumerate(rows) if one.outcome.verdict.error is None),
        key=lambda row: -rows[row].outcome.reward,
    )
    drawn = random.Random(seed).sample(range(len(rows)), min(count, len(rows)))
    chosen = [("best", row) for row in judged[:count]]
    chosen += [("worst", row) for row in judged[::-1][:count]]
    chosen += [("random", row) for row in drawn]
    lines = ["| rollout | prompt | completion |", "|---|---|---|"]
    for kind, row in chosen:
        one, own = rows[row], experience.row_advantages(row)
        advantage = None if own is None else float(own.float().mean())
        facts = "<br>".join([f"**{kind}**", *_facts(one.outcome, advantage)])
        lines.append(f"| {facts} | {_cell(one.prompt, 400)} | {_cell(one.answer.completion.text, 800)} |")
    return "\n".join(lines)


def _facts(outcome: Outcome, advantage: float | None) -> Iterator[str]:
    verdict = outcome.verdict
    if verdict.error is not None:
        yield _cell(f"error: {verdict.error}", 200)
    else:
        yield verdict.kind
        yield f"reward {outcome.reward:.2f}"
    if advantage is not None:
        yield f"advantage {advantage:+.2f}"
    turns = f" in {outcome.turns} turns" if outcome.turns > 1 else ""
    yield f"{outcome.tokens} tokens{turns}{', truncated' if outcome.is_truncated else ''}"
    if verdict.feedback:
        yield _cell(verdict.feedback, 200)


def _cell(text: str, limit: int) -> str:
    """Any text inside a cell: the middle of a long one is omitted, and what Markdown or HTML would read is escaped."""
    if len(text) > limit:
        text = f"{text[: limit // 2]} [...] {text[-limit // 2 :]}"
    kept = [c if c.isalnum() or c in " .,:;?" else "<br>" if c == "\n" else f"&#{ord(c)};" for c in text.strip()]
    return "".join(kept)
