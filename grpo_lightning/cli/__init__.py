"""LightningCLI as ``grpo`` uses it: parsing, run directories, errors in one sentence."""
