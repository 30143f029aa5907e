"""Shell completion of ``grpo``."""
