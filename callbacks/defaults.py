"""The callbacks of a run that is made from Python, as the command line gives them to every run."""

from __future__ import annotations

import lightning.pytorch as pl

from .health import HealthCheck
from .progress import StepProgressBar
from .rollouts import RolloutLogger
from .summary import RunSummary


def default_callbacks() -> list[pl.Callback]:
    """Return new callbacks for a Trainer: preflight, progress bar, summary, and the rollouts for ``grpo samples``.

    ``Trainer(callbacks=default_callbacks(), default_root_dir="my_run", ...)`` writes the rollouts to
    ``my_run/rollouts``. The command line adds checkpoints, the exported policy and extras of TensorBoard:
    ``RunCheckpoint``, ``PolicyExport``, ``TensorBoardExtras``.
    """
    return [HealthCheck(), StepProgressBar(), RunSummary(), RolloutLogger()]
