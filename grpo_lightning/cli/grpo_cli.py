"""``grpo fit|validate|test|predict``, driven by LightningCLI."""

from __future__ import annotations

import argparse
import copy
import importlib
import logging
import re
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

# Imported for their subclasses: what is imported can be named in YAML by its short class name.
import grpo_lightning.advantages
import grpo_lightning.algorithms
import grpo_lightning.objectives
import grpo_lightning.tasks
import grpo_lightning.verifiers  # noqa: F401
from grpo_lightning.algorithms.base import PolicyModule
from grpo_lightning.cli import user_errors
from grpo_lightning.cli.parser import SentenceParser
from grpo_lightning.cli.runs import check_checkpoint, last_checkpoint, make_run_dir, new_run_dir, run_of_checkpoint
from grpo_lightning.cli.save_config import SaveRunConfig, into_run_dir, tensorboard
from grpo_lightning.errors import ConfigError
from grpo_lightning.rollout.datamodule import RolloutDataModule

log = logging.getLogger(__name__)

TRAINER_DEFAULTS = {
    # RL steps are few and dear: log each, count validation intervals in steps across passes over the data.
    "log_every_n_steps": 1,
    "check_val_every_n_epoch": None,
    "val_check_interval": 50,
    # RunSummary validates before the first step, completely; a sanity check before that would sample for nothing.
    "num_sanity_val_steps": 0,
}

CALLBACKS = {
    "checkpoint": "RunCheckpoint",
    "health_check": "HealthCheck",
    "summary": "RunSummary",
    "export": "PolicyExport",
    "predictions": "PredictionWriter",
    "rollouts": "RolloutLogger",
    "tensorboard": "TensorBoardExtras",
}
"""Callbacks that every run has, by the config key that holds their options."""


IGNORED_WARNINGS = (
    "LightningCLI's args parameter is intended to run from within Python",  # as we do
    ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning's own use of torch
    "`is_gradient_checkpointing` is deprecated",  # peft's own use of transformers
    ".*does not have many workers.*",  # the loader hands over prompts; the work is in the rollout
    ".*is not supported by the model summary.*",
    ".*It is recommended to use .*sync_dist=True.*",  # what is logged has been reduced over the ranks
    ".*Couldn't infer the batch indices.*",  # the records say what they are
    ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run's
    ".*The dirpath has changed from .*",  # a test of a run's checkpoint has a folder of its own
)
"""Warnings that a user can do nothing about."""


class GRPOCLI(LightningCLI):
    """LightningCLI with a directory of its own for every run, and an optional warm start."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir",
            type=str | None,
            help="where the files of this run go; left out: runs/<name of the config>/<time>-<id>",
        )
        parser.add_argument(
            "--warm_start",
            type=str | None,
            help="config of an SFT run to do first; the policy that it exports takes the place of model.policy.path",
        )
        callbacks = importlib.import_module("grpo_lightning.callbacks")
        for key, name in CALLBACKS.items():
            parser.add_lightning_class_args(getattr(callbacks, name), key)

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        if not add_subcommands:
            # The config that a run saved has fit's own keys too; where nothing is run, they say nothing.
            for key in ("ckpt_path", "weights_only"):
                self.parser.add_argument(f"--{key}", type=Any, help=argparse.SUPPRESS)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        user_errors.check_config_files(args)
        super().parse_arguments(parser, args)
        config = self.config.get(str(self.config.get("subcommand")), self.config)
        user_errors.check_seed(config.seed_everything)
        if "subcommand" in self.config and config.ckpt_path not in (None, "last"):
            # Lightning looks into it next.
            check_checkpoint(config.ckpt_path)

    def before_instantiate_classes(self) -> None:
        """Settle where the run's files go, before anything is built that writes some."""
        if self.subcommand is None:
            return
        config = self.config[self.subcommand]
        if config.get("ckpt_path") == "last":
            config.ckpt_path = last_checkpoint(self._runs_root(config), self._config_name(config))
            check_checkpoint(config.ckpt_path)
        self.save_config_kwargs["places"] = (copy.deepcopy(config.trainer.logger), config.trainer.default_root_dir)
        if config.run_dir is None:
            config.run_dir = self._run_dir(config)
        elif (Path(config.run_dir) / "config.yaml").is_file() and not self._goes_on(config):
            go_on = ", or go on with that one by --ckpt_path and its checkpoint" if self.subcommand == "fit" else ""
            raise ConfigError(f"run_dir: {config.run_dir} holds a run already: leave run_dir out for a new one{go_on}")
        run_dir = Path(config.run_dir)
        if config.warm_start is not None:
            if self.subcommand == "fit":
                self._warm_start(config, run_dir)
            _start_from(config, self._warm_policy(config, run_dir))
        user_errors.refuse_trainer_options(config.trainer)
        config.trainer.default_root_dir = str(run_dir)
        if config.trainer.logger in (None, True):
            config.trainer.logger = tensorboard(run_dir)
        into_run_dir(config.trainer.logger, run_dir)
        callbacks = config.trainer.callbacks or []
        if config.trainer.enable_progress_bar is not False and not any(
            "ProgressBar" in c.class_path for c in callbacks
        ):
            bar = Namespace(class_path="grpo_lightning.callbacks.StepProgressBar", init_args=Namespace())
            config.trainer.callbacks = [*callbacks, bar]

    def instantiate_classes(self) -> None:
        """Build all from the config. The parser wraps what a constructor raises; the mistake is dug out again.

        Raises:
            ConfigError: an option is out of its range, options exclude each other, or a class cannot be built.
        """
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        try:
            super().instantiate_classes()
        except Exception as error:
            raise user_errors.of_construction(error, config) from error
        if self.subcommand is not None:
            make_run_dir(Path(config.run_dir))

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except ConfigError:
            raise
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            raise user_errors.of_trainer(error) from error
        if trainer.is_global_zero and self.subcommand is not None:
            log.info("run dir: %s", trainer.default_root_dir)
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        """A callback that every run has is left out where the config lists one of its class itself."""
        listed = {type(callback) for callback in config.get("callbacks") or []}
        if LightningCheckpoint in listed:
            raise ConfigError("trainer.callbacks: Checkpoint is Lightning's empty base class: write RunCheckpoint")
        if config["enable_checkpointing"] is False:
            listed.add(importlib.import_module("grpo_lightning.callbacks").RunCheckpoint)
        return super()._instantiate_trainer(config, [one for one in callbacks if type(one) not in listed])

    def _run_dir(self, config: Any) -> str:
        run = run_of_checkpoint(config.ckpt_path) if config.get("ckpt_path") else None
        if run is None:
            return str(new_run_dir(self._runs_root(config), self._config_name(config)))
        # A resumed run goes on where it was, so that its curves are one; what a checkpoint is found to be worth lies
        # with its run, and apart from its curves.
        return str(run if self.subcommand == "fit" else new_run_dir(run, str(self.subcommand)))

    def _goes_on(self, config: Any) -> bool:
        """Whether this resumes the run that run_dir holds."""
        run = run_of_checkpoint(config.ckpt_path) if config.get("ckpt_path") else None
        return self.subcommand == "fit" and run is not None and run.resolve() == Path(config.run_dir).resolve()

    def _runs_root(self, config: Any) -> Path:
        return Path(config.trainer.default_root_dir or "runs")

    def _config_name(self, config: Any) -> str:
        files = [str(file) for file in config.config or []]
        path = Path(files[0]) if files else Path(f"{self.subcommand}.yaml")
        if re.fullmatch(r"config(-\d+)?", path.stem) and (path.parent / "checkpoints").is_dir():
            # A run's own config, runs/<name>/<run>/config.yaml: a run from it has the same name.
            return path.absolute().parent.parent.name
        return path.stem

    def _warm_policy(self, config: Any, run_dir: Path) -> Path:
        """The policy that a run started from: this one's, or that of the run whose checkpoint is evaluated."""
        if self.subcommand == "fit":
            return run_dir / "warm_start" / "policy"
        run = run_of_checkpoint(config.ckpt_path) if config.ckpt_path else None
        if run is None:
            raise ConfigError(
                "warm_start: without the checkpoint of a run no policy has started from it: give RUN/config.yaml as "
                "--config and RUN/checkpoints/last.ckpt as --ckpt_path, or --warm_start null for model.policy.path as "
                "it is"
            )
        policy = run / "warm_start" / "policy"
        if not policy.is_dir():
            raise ConfigError(f"warm_start: {run} did none, or {policy} is gone: give --config {run / 'config.yaml'}")
        return policy

    def _warm_start(self, config: Any, run_dir: Path) -> None:
        policy = self._warm_policy(config, run_dir)
        if policy.is_dir():
            return
        if config.ckpt_path:
            raise ConfigError(
                f"warm_start: {policy}, which this run started from, is gone: name another policy in "
                "model.init_args.policy.path and set warm_start to null"
            )
        last = policy.parent / "checkpoints" / "last.ckpt"
        go_on = ["--ckpt_path", str(last)] if last.is_file() else []
        if not go_on:
            # What a warm start left behind that broke off before its first checkpoint.
            shutil.rmtree(policy.parent, ignore_errors=True)
        folder, seed = str(policy.parent), str(config.seed_everything)
        try:
            run(["fit", "--config", config.warm_start, "--run_dir", folder, "--seed_everything", seed, *go_on])
        except ConfigError as error:
            raise ConfigError(f"warm_start: in {config.warm_start}: {error}") from error
        pl.seed_everything(config.seed_everything, workers=True, verbose=False)


def _start_from(config: Any, policy: Path) -> None:
    config.model.init_args.policy.path = str(policy)
    config.model.init_args.policy.init = "pretrained"
    config.warm_start = None


def run(args: Sequence[str]) -> GRPOCLI:
    """Parse ``args`` and do what they say."""
    set_up_output()
    try:
        return _cli(list(args))
    except MisconfigurationException as error:
        raise ConfigError(str(error)) from error
    except RuntimeError as error:
        mistake = user_errors.of_run(error)
        if mistake is None:
            raise
        raise mistake from error


def set_up_output() -> None:
    """Print what the project logs from INFO on, without Lightning's advertisements and the ignored warnings.

    Other libraries keep their levels.
    """
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    ours = logging.getLogger("grpo_lightning")
    ours.setLevel(logging.INFO)
    if not ours.handlers and not logging.getLogger().handlers:
        ours.addHandler(logging.StreamHandler())
        for handler in logging.getLogger("lightning.pytorch").handlers:
            handler.addFilter(lambda entry: "Tip: For seamless" not in entry.getMessage())


def _cli(args: list[str], run: bool = True, kind: type[GRPOCLI] = GRPOCLI) -> GRPOCLI:
    return kind(
        PolicyModule,
        RolloutDataModule,
        subclass_mode_model=True,
        save_config_callback=SaveRunConfig,
        save_config_kwargs={"arguments": args},
        seed_everything_default=42,
        trainer_defaults=TRAINER_DEFAULTS,
        auto_configure_optimizers=False,
        parser_class=SentenceParser,
        args=args,
        run=run,
    )


def parse(args: list[str], kind: type[GRPOCLI] = GRPOCLI) -> GRPOCLI:
    """Module, data and trainer of a config, built but not run; no model is loaded."""
    return _cli(args, run=False, kind=kind)
