"""``grpo compare``: one report of several runs, from the files that the runs wrote. No torch."""
