"""The subcommands of ``grpo`` beside Lightning's own."""
