"""``grpo reproduce``: a run once more, and whether it is the same."""
