# Everything below needs Python 3.11 and make, nothing else; `make` alone lists the targets.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo check reference test lint typecheck bench clean

BIN := .venv/bin
export RAY_USAGE_STATS_ENABLED ?= 0

help: ## list the targets
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

setup: ## make .venv with the pinned set (minutes; a second call finds it there)
	@bash requirements/setup.sh

demo: setup ## train the tiny model on `sales`; the report is runs/demo/report.html
	$(BIN)/mtrl train sales --fresh run.name=demo

lint: setup ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: setup ## mypy
	$(BIN)/mypy

check: setup lint typecheck ## lint, types, import rules, tests without Ray and vLLM (2 minutes)
	$(BIN)/pytest -n 2 --no-loadscope-reorder -q -m check $(ARGS)

reference: setup
	@cmp -s requirements/reference.txt .venv/reference/installed.txt || { \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --upgrade --target .venv/reference \
	    -r requirements/reference.txt && cp requirements/reference.txt .venv/reference/installed.txt; }

test: setup reference lint typecheck ## lint, types, tests (ARGS="-k tokens" picks tests)
	$(BIN)/pytest -n 2 --no-loadscope-reorder --durations=20 $(ARGS)

bench: setup ## rollout and learner throughput against the bare libraries
	$(BIN)/mtrl bench rollout
	$(BIN)/mtrl bench learner

clean: ## remove .venv, caches and build outputs; runs stay
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
