"""The callbacks of a run that is made from Python, as the command line gives them to every run."""

from __future__ import annotations

import lightning.pytorch as pl

from grpo_lightning.output import show_log

from .health import HealthCheck
from .notebook import NotebookView
from .progress import StepProgressBar
from .rollouts import RolloutLogger
from .summary import RunSummary


def default_callbacks() -> list[pl.Callback]:
    """Return new callbacks for a Trainer: preflight, progress bar, summary, and the rollouts for ``grpo samples``.

    In a notebook, a curve and a table of completions too. What the preflight says is printed, unless the program has
    set up logging itself.

    ``Trainer(callbacks=default_callbacks(), default_root_dir="my_run", ...)`` writes the rollouts to
    ``my_run/rollouts``, and those of a later ``trainer.test`` to ``my_run/test/1/rollouts``. The command line adds
    checkpoints, the exported policy and extras of TensorBoard: ``RunCheckpoint``, ``PolicyExport``,
    ``TensorBoardExtras``.
    """
    show_log()
    return [HealthCheck(), StepProgressBar(), RunSummary(), RolloutLogger(), NotebookView()]
