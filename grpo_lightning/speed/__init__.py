"""Shortcuts: the same results in less time or memory."""
