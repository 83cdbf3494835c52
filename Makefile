# Two commands for a fresh clone: `make test` and `make demo`. Each makes its own environment, once.
# ARGS are handed on: make demo ARGS="--sink memory:", make tox ARGS="run -e py312-core -- -k archive".

NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 10))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	$$python -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && { command -v $$python; break; }; done)
DEV = $(if $(PYTHON),$(PYTHON),$(error No Python 3.10 or newer on PATH; name one: make PYTHON=/path/to/python3)) scripts/dev.py
ARGS =

.DEFAULT_GOAL := help
.PHONY: help test long torture soak demo bench tox lint format constraints clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

test: ## Lint, types, layers, and each kind of suite on the oldest or the newest Python at hand
	@$(DEV) test $(ARGS)

long: ## The tests that take minutes: many files, more shapes of MLflow runs
	@$(DEV) long $(ARGS)

torture: ## Kill work at any moment, over and over, on each kind of store, and show what came of it
	@$(DEV) node
	@$(DEV) run torture python tests/torture $(ARGS)

soak: ## Half an hour of a training that checkpoints and rotates while its store comes and goes
	@$(DEV) run torture python tests/torture/soak.py $(ARGS)

demo: ## Run the real pipeline: every artifact lands, is verified, listed and restored
	@$(DEV) run demo stagesink demo $(ARGS)

bench: ## Measure stagesink beside its peers on the same bytes
	@$(DEV) node
	@$(DEV) run bench python benchmarks/run.py $(ARGS)

tox: ## The whole matrix: every Python at hand, with each kind of server
	@$(DEV) tox $(ARGS)

lint: ## Lint, types and layers alone
	@$(DEV) tox run -e lint,types,layers

format: ## Put the code into shape
	@$(DEV) tox run -q -e format

constraints: ## Resolve the files of constraints anew (ARGS=--upgrade for the newest versions)
	@$(DEV) constraints $(ARGS)

clean: ## Remove every environment and cache
	rm -rf .venv .tox tests/node/node_modules .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage* htmlcov dist build
