# make quickstart   set up, and train the tiny policy of configs/quickstart.yaml on the CPU
# make real         train SmolLM2-135M-Instruct, a small real model, by configs/smollm2_json.yaml on the CPU; with
#                   MODEL=FOLDER a local copy of it, without a network
# make compare      the table and the curves of docs/results: all methods, three seeds each, on the CPU
# make test         set up, and run the whole test suite
# make test-fast    the same without the tests that are marked slow, which CI runs
# make check        what CI runs: lint, types, tests
# make docs         build the documentation site into site/, with warnings as errors
# make gpu-check    what waits for a large GPU, in one table and at most 8 minutes: tests, memory, and steps beside TRL
# make newest       the test suite with the newest transformers, in an environment of its own: for a scheduled job

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: quickstart real compare test test-fast lint types check docs gpu-check newest clean

quickstart: $(VENV)/.installed
	$(BIN)/grpo fit --config configs/quickstart.yaml

real: $(VENV)/.installed
	$(BIN)/grpo fit --config configs/smollm2_json.yaml $(if $(MODEL),--model.init_args.policy.path '$(MODEL)')

compare: $(VENV)/.installed-dev
	$(BIN)/python scripts/compare.py

test: $(VENV)/.installed-dev
	$(PYTEST)

test-fast: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow and not vllm"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

check: lint types test

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

gpu-check: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/gpu_check.py

# pip says that the project wants an older transformers, and installs the newest all the same.
newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install -c constraints.txt -e '.[dev]'
	.venv-newest/bin/python -m pip install --upgrade transformers
	.venv-newest/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(BIN)/python -m pip install -c constraints.txt -e '.[bench]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) .venv-newest build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
