"""Runs programs that mean harm against tests they never see.

Four processes, each started by the one above it and trusting only that one:

- the *client* (:mod:`.client`), in the trainer: keeps a few workers, hands them requests, kills them when they hang;
- the *zygote* (:mod:`.zygote`), a worker: a fresh interpreter without environment that forks the next two for each
  run, kills them at the time limit, and never reads a request;
- the *judge* (:mod:`.judge`) reads the request, runs the tests, and decides;
- the *defendant* (:mod:`.defendant`) holds the program and answers the judge's calls. Judge and defendant exchange
  plain data only (:mod:`.wire`), and both are locked down (:mod:`.lockdown`).

The imports in here are relative, since the zygote loads this folder as a separate package: importing the whole of
``grpo_lightning.verifiers`` would only make it larger, and each fork slower.
"""
