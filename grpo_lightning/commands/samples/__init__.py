"""``grpo samples RUN_DIR``: write a run's rollouts as one HTML file that needs no server."""
