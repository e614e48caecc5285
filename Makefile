# Two commands do everything: `make demo` and `make test`. Both make the environments they need first.
PYTHON ?= python3
BIN := .venv/bin
# processes that share the test files; each keeps to one core, and one more than cores, since all wait for servers at times
WORKERS ?= 3

.PHONY: help setup setup-sglang demo test lint docs format clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup:  ## make or update .venv
	@$(PYTHON) scripts/setup_env.py

setup-sglang:  ## make or update .venv-sglang
	@$(PYTHON) scripts/setup_env.py sglang

demo: setup  ## a real drafter in a real vLLM server, against the same server without it
	@$(BIN)/eagle3 demo

lint: setup  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: lint setup-sglang  ## every check and every test
	@$(BIN)/eagle3 fetch-target
	@$(BIN)/eagle3 fetch-target gemma3-270m
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 20

docs: setup  ## the documentation, into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

format: setup  ## put the code in the house's form
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove the environment and caches
	rm -rf .venv .venv-sglang .mypy_cache .ruff_cache .pytest_cache build site *.egg-info
