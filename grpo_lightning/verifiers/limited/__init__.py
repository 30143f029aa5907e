"""Calls that may take too long or too much memory: each in a separate process, under limits."""

from grpo_lightning.verifiers.limited.client import LimitedWorker, OutOf, process_environment, processors

__all__ = ["LimitedWorker", "OutOf", "process_environment", "processors"]
