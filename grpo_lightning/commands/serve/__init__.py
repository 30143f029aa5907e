"""``grpo serve``: a policy behind OpenAI's completions and chat completions."""
