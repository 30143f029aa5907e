"""``grpo serve-command``: how to start a vLLM server for the rollouts of a config."""
