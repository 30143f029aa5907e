"""``grpo serve``: serve a policy by OpenAI's completions and chat completions."""
