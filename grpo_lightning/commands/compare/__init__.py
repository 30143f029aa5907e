"""``grpo compare``: write one report on several runs from the files they wrote. Does not import torch."""
