"""Looking at a run's rollouts: ``grpo samples RUN_DIR`` makes one HTML file of them, which needs no server."""
