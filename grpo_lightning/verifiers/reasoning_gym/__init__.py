"""Judges answers to the rows of ``ReasoningGym`` with reasoning-gym's own scorers, in a sandbox."""
