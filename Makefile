# Two commands do everything on a fresh machine: `make demo` and `make test`. Each makes its own environment first.

PYTHON ?= $(shell command -v python3.13 || command -v python3.12 || command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint types check faults bench lock clean

help: ## Show the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: $(STAMP) ## A year of flights, scored while the model is retrained and swapped
	$(PY) -m modelcast demo

test: $(STAMP) ## All tests, with a real Kafka broker (under 10 minutes)
	$(PY) -m pytest

lint: $(STAMP) ## Style
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(STAMP) ## Types
	$(PY) -m mypy

check: lint types test ## Everything CI runs

bench: $(STAMP) ## Throughput against its peers
	$(PY) -m benchmarks.stream --json

lock: $(STAMP) ## Pin every dependency anew, with hashes
	$(PY) -m pip install --quiet uv
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --upgrade --extra demo --group test --group lint pyproject.toml -o requirements/dev.txt

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) .ci/check_python.py
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

clean: ## Remove the environment
	rm -rf $(VENV)
