"""Environments: what replies to the policy in a conversation of several turns. Imports no torch."""

from grpo_lightning.environments.base import Environment, Message, Reply, Step
from grpo_lightning.environments.calls import Call
from grpo_lightning.environments.guessing import GuessNumber
from grpo_lightning.environments.python import PythonEnvironment
from grpo_lightning.environments.tools import ToolEnvironment, calculator

__all__ = [
    "Call",
    "Environment",
    "GuessNumber",
    "Message",
    "PythonEnvironment",
    "Reply",
    "Step",
    "ToolEnvironment",
    "calculator",
]
