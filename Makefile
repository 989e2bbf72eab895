# The commands of this repository; `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all lint format site clean

# An interpreter named with PYTHON=... reaches launch/setup.sh.
export PYTHON

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: ## install into .venv, then prepare, train, evaluate, export and draw a small run
	@launch/setup.sh
	@PYTHON= launch/quickstart.sh

test: ## install into .venv, then run every test that this machine can run
	@launch/setup.sh --dev
	@PYTHON= launch/run_tests.sh $(ARGS)

test-all: ## the same with every case of the large grids, of which test takes a part
	@launch/setup.sh --dev
	@PYTHON= ENTRODROP_WHOLE_GRIDS=1 launch/run_tests.sh $(ARGS)

lint: ## ruff, mypy, import layers, shellcheck
	@launch/setup.sh --dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/shellcheck --external-sources .ci/run launch/*.sh launch/slurm/* \
		launch/kubernetes/*.sh launch/kubernetes/efa/*.sh docker/*.sh

format: ## rewrite the sources as ruff formats them
	@launch/setup.sh --dev
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

site: ## build the documentation with search and an API reference into site/
	@launch/setup.sh --dev
	PYTHONPATH=.venv/docs NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict

clean: ## remove .venv, caches and the quickstart's corpus and run
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf data/quickstart runs/quickstart site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
