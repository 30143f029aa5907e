"""What a config will take of memory, found without any: ``grpo plan``."""
