"""The subcommands of ``grpo``, without loading torch."""

from __future__ import annotations

SUMMARIES = {
    "fit": "train a policy (GRPO, PPO or SFT, as the config says)",
    "validate": "accuracy on the validation split",
    "test": "accuracy on the test split, with every completion stored",
    "predict": "write completions of the test split with their verdicts to predictions.jsonl",
    "check": "see whether the task's own gold answers satisfy the verifiers",
    "verify": "score the completions of a JSONL file, to try a verifier before training with it",
    "samples": "show the rollouts of a run as one HTML file",
    "compare": "one report of several runs: accuracy, memory, time, curves, significance",
    "reproduce": "a run once more: what differs from it, and whether the rollouts are the same",
    "plan": "what memory each phase will take, whether it fits, and the largest settings that do",
    "serve": "answer OpenAI's completions and chat completions with a policy",
    "serve-command": "how to start a vLLM server for the rollouts of a config",
    "init": "start a project of your own: a config, a verifier and data that run as they are",
    "configs": "list the shipped configs, and copy them",
    "completion": "a script with which bash or zsh completes subcommands, keys and values",
}

LIGHTNING_SUBCOMMANDS = ("fit", "validate", "test", "predict")
"""Those that LightningCLI runs."""

COMMANDS = {
    name: f"grpo_lightning.commands.{name.replace('-', '_')}.command"
    for name in SUMMARIES
    if name not in LIGHTNING_SUBCOMMANDS
}
"""The other ones: the module whose ``main(args)`` runs each, imported only then."""

WITH_CONFIG = (*LIGHTNING_SUBCOMMANDS, "check", "plan", "serve", "serve-command")
"""Subcommands that need a config; ``verify`` finds a run's own."""

WITH_KEYS_ALONE = (*LIGHTNING_SUBCOMMANDS, "check")
"""Subcommands that have no option beside the keys of a config."""
