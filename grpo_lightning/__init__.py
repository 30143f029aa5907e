"""Reinforcement learning of small language models with verifiable rewards, as a Lightning framework."""

__version__ = "0.1.0"
