"""``grpo fit|validate|test|predict``, driven by LightningCLI."""

from __future__ import annotations

import argparse
import copy
import importlib
import inspect
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

# Imported for their subclasses: what is imported can be named in YAML by its short class name.
import grpo_lightning.advantages
import grpo_lightning.algorithms
import grpo_lightning.constraints
import grpo_lightning.objectives
import grpo_lightning.rollout.engines.vllm
import grpo_lightning.tasks
import grpo_lightning.verifiers  # noqa: F401
from grpo_lightning.algorithms.base import PolicyModule
from grpo_lightning.cli import user_errors
from grpo_lightning.cli.allocator import MMAP_THRESHOLD, set_up_allocator
from grpo_lightning.cli.checkpoints import NAMED, check_checkpoint, named_checkpoint, requeued_checkpoint
from grpo_lightning.cli.config_files import read_config_files
from grpo_lightning.cli.import_folders import use_import_folders
from grpo_lightning.cli.launch import check_processes, is_first_process
from grpo_lightning.cli.parser import SentenceParser
from grpo_lightning.cli.run_dirs import RunDir, config_name, run_dir_of, run_of_config
from grpo_lightning.cli.save_config import SaveRunConfig
from grpo_lightning.cli.trainer_defaults import TRAINER_DEFAULTS, add_run_defaults, with_logger_options
from grpo_lightning.cli.warm_start import CommandLine, policy_of_the_run, start_from, warm_policy
from grpo_lightning.errors import ConfigError
from grpo_lightning.lightning_private import FilteringCLI
from grpo_lightning.output import show_log
from grpo_lightning.rollout.datamodule import RolloutDataModule
from grpo_lightning.stored import UNFINISHED_TEST

log = logging.getLogger(__name__)

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
    ".*The dirpath has changed from .*",  # a test of a run's checkpoint has a separate folder
)
"""Warnings that a user can do nothing about."""


class GRPOCLI(FilteringCLI):
    """LightningCLI with a directory for every run, and an optional warm start.

    Args:
        arguments: the command line from the subcommand on; without ``run``, the options alone.
        run: do what the subcommand says; otherwise build module, data and trainer only.
    """

    def __init__(self, arguments: list[str], run: bool = True) -> None:
        self.run_dir: RunDir | None = None
        self._chosen = arguments[0] if run else None
        use_import_folders(arguments)
        try:
            with user_errors.as_sentences():
                super().__init__(
                    PolicyModule,
                    RolloutDataModule,
                    subclass_mode_model=True,
                    save_config_callback=SaveRunConfig,
                    save_config_kwargs={"arguments": arguments},
                    seed_everything_default=42,
                    trainer_defaults=TRAINER_DEFAULTS,
                    auto_configure_optimizers=False,
                    parser_class=SentenceParser,
                    args=with_logger_options(arguments),
                    run=run,
                )
        except ConfigError:
            if self.run_dir is not None:
                self.run_dir.discard()
            raise
        except SIGTERMException as error:
            # Lightning's own has the exit status 0, by which a scheduler takes the run for finished.
            raise SystemExit(1) from error

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the subcommand that runs, alone: the parsers of the others would take 0.13 s to build."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name == self._chosen}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir",
            type=str | None,
            help="where the files of this run go; default: runs/<name of the config>/<time>-<id>",
        )
        parser.add_argument(
            "--warm_start",
            type=str | None,
            help="config of an SFT run to train first, on one device; its exported policy replaces model.policy.path",
        )
        parser.add_argument(
            "--reuse_warm_start",
            type=bool,
            default=True,
            help="use the policy of an earlier run whose warm start was made with the same config, versions and files",
        )
        callbacks = importlib.import_module("grpo_lightning.callbacks")
        for key, name in CALLBACKS.items():
            parser.add_lightning_class_args(getattr(callbacks, name), key)

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        if not add_subcommands:
            # The config that a run saved has its subcommand's own keys too; where nothing is run, they say nothing.
            for key in ("ckpt_path", "weights_only", "verbose", "return_predictions"):
                self.parser.add_argument(f"--{key}", type=Any, help=argparse.SUPPRESS)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        read_config_files(args)
        super().parse_arguments(parser, args)
        config = self.config.get(str(self.config.get("subcommand")), self.config)
        user_errors.check_seed(config.seed_everything)
        if "subcommand" in self.config and config.ckpt_path not in (None, *NAMED):
            # Lightning looks into it next.
            check_checkpoint(config.ckpt_path)

    def before_instantiate_classes(self) -> None:
        """Settle where the run starts and where its files go, before anything is built that writes some."""
        if self.subcommand is None:
            return
        config = self.config[self.subcommand]
        user_errors.refuse_trainer_options(config.trainer)
        root = Path(config.trainer.default_root_dir or "runs")
        files = [str(file) for file in config.config or []]
        name = config_name(files, self.subcommand)
        if config.get("ckpt_path") in NAMED:
            config.ckpt_path = named_checkpoint(config.ckpt_path, root, name, run_of_config(files))
        if self.subcommand == "fit" and config.ckpt_path is None and config.run_dir is None:
            config.ckpt_path = requeued_checkpoint(root, name)
        self.save_config_kwargs["places"] = (copy.deepcopy(config.trainer.logger), config.trainer.default_root_dir)
        self.run_dir = run_dir_of(config.run_dir, self.subcommand, root, name, config.get("ckpt_path"))
        config.run_dir = config.trainer.default_root_dir = str(self.run_dir.path)
        if config.warm_start is not None:
            if self.subcommand == "fit":
                command_line = CommandLine(_WarmStart, resolved, self.check_before_warm_start)
                policy = warm_policy(config, self.run_dir.path, root, command_line)
            else:
                policy = policy_of_the_run(config.ckpt_path)
            start_from(config, policy)
        add_run_defaults(config.trainer, self.run_dir.path)

    def instantiate_classes(self) -> None:
        """Build all from the config. The parser wraps what a constructor raises; this finds the mistake in it.

        Raises:
            ConfigError: an option is out of its range, options exclude each other, or a class cannot be built.
        """
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        try:
            super().instantiate_classes()
        except Exception as error:
            raise user_errors.construction_error(error, config) from error
        if self.run_dir is not None:
            # Here, before Lightning starts processes for the other devices: their errors would repeat it.
            self.datamodule.check_devices(self.trainer.num_devices * self.trainer.num_nodes)
            self.run_dir.make()
            if self.subcommand == "test" and is_first_process():
                (self.run_dir.path / UNFINISHED_TEST).write_text("grpo test has not ended, or was ended early\n")

    def check_before_warm_start(self, policy: str) -> None:
        """Build all from the config and check the data, so that mistakes are found before a model is trained.

        Args:
            policy: whose tokenizer the warm start's policy will have; that of the config may be another.

        Raises:
            ConfigError: see :meth:`instantiate_classes`, and ``RolloutDataModule.prepare``.
        """
        config = self.config.clone()
        chosen = config[self.subcommand]
        chosen.model.init_args.policy.path = policy
        try:
            self.config_init = self.parser.instantiate_classes(config)
        except Exception as error:
            raise user_errors.construction_error(error, chosen) from error
        built = self.config_init[self.subcommand]
        built.model.trainer = self._built_trainer()
        built.data.prepare(built.model, built.model.trainer, "fit")

    def _built_trainer(self, **kwargs: Any) -> pl.Trainer:
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except ConfigError:
            raise
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            raise user_errors.trainer_error(error) from error
        if self.subcommand is not None:
            self.check_processes(trainer)
        return trainer

    def check_processes(self, trainer: pl.Trainer) -> None:
        """Check that a launcher has started as many processes as the trainer has devices."""
        check_processes(trainer.num_devices * trainer.num_nodes)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        trainer = self._built_trainer(**kwargs)
        if self.subcommand is not None:
            is_set_up = set_up_allocator(trainer.strategy.root_device.type)
            if trainer.is_global_zero:
                log.info("run dir: %s", trainer.default_root_dir)
                if is_set_up:
                    log.info("allocator: glibc maps blocks of %d KiB and more separately", MMAP_THRESHOLD // 1024)
        return trainer

    def after_test(self) -> None:
        """LightningCLI calls this after the subcommand ``test``, when the results have been printed."""
        end_on_signal = importlib.import_module("grpo_lightning.callbacks").EndOnSignal
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, end_on_signal):
                callback.raise_if_ended()
        if self.run_dir is not None and is_first_process():
            (self.run_dir.path / UNFINISHED_TEST).unlink(missing_ok=True)

    after_validate = after_predict = after_test

    def added_callbacks(self, config: dict[str, Any], callbacks: Sequence[pl.Callback]) -> list[pl.Callback]:
        """Omit a callback that every run has where the config lists one of its class, or a subclass, itself.

        Raises:
            ConfigError: the omitted one has options, which would have no effect.
        """
        if config["barebones"]:
            return []
        shipped = importlib.import_module("grpo_lightning.callbacks")
        given = config.get("callbacks") or []
        listed = [type(callback) for callback in (given if isinstance(given, list) else [given])]
        if LightningCheckpoint in listed:
            raise ConfigError("trainer.callbacks: Checkpoint is Lightning's empty base class: write RunCheckpoint")
        for key, name in CALLBACKS.items():
            for kind in listed:
                if issubclass(kind, getattr(shipped, name)):
                    self._refuse_options_of(key, getattr(shipped, name), kind)
        if config["enable_checkpointing"] is False:
            listed.append(shipped.RunCheckpoint)
        callbacks = [shipped.EndOnSignal(), *callbacks]
        return [callback for callback in callbacks if not any(issubclass(kind, type(callback)) for kind in listed)]

    def _refuse_options_of(self, key: str, omitted: type, listed: type) -> None:
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        parameters = inspect.signature(omitted).parameters
        for option, value in vars(config[key]).items():
            if value != parameters[option].default:
                raise ConfigError(
                    f"{key}.{option}: has no effect, because trainer.callbacks lists {listed.__name__}: set it in the "
                    f"init_args there, or remove {listed.__name__} from the list"
                )


def run(args: Sequence[str]) -> GRPOCLI:
    """Parse ``args`` and do what they say."""
    set_up_output()
    return GRPOCLI(list(args))


def resolved(args: Sequence[str]) -> dict[str, Any]:
    """The config of a command line, with every default, as plain values; nothing is built."""
    try:
        _Parsing(list(args))
    except _Parsed as parsed:
        cli = parsed.args[0]
        config: dict[str, Any] = yaml.safe_load(cli.parser.dump(cli.config, skip_unset=False))
        return config[cli.subcommand]
    raise AssertionError("the command line was to be parsed alone")


class _WarmStart(GRPOCLI):
    """Trains on the first process alone, however many a launcher has started."""

    def check_processes(self, trainer: pl.Trainer) -> None:
        pass


class _Parsed(Exception):
    pass


class _Parsing(GRPOCLI):
    """Stops when the config is there."""

    def before_instantiate_classes(self) -> None:
        raise _Parsed(self)


def set_up_output() -> None:
    """Print what the project logs from INFO on, without Lightning's advertisements and the ignored warnings.

    Other libraries keep their levels.
    """
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    if not logging.getLogger("grpo_lightning").handlers and not logging.getLogger().handlers:
        for handler in logging.getLogger("lightning.pytorch").handlers:
            handler.addFilter(lambda entry: "Tip: For seamless" not in entry.getMessage())
    show_log()


def parse(args: list[str], kind: type[GRPOCLI] = GRPOCLI) -> GRPOCLI:
    """Module, data and trainer of a config, built but not run; no model is loaded."""
    return kind(args, run=False)
