# Two commands do everything on a fresh machine: `make demo` and `make test`. Each makes its own environment first.

# The first Python that runs and is new enough; .ci/check_python.py explains when there is none.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && exit; done; echo python3)
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# What the tests need of the package's extras; XGBoost comes without its gigabyte for GPUs, PyTorch not at all.
EXTRAS := demo hf lightgbm mlflow signing store
# Tests wait for Kafka more than they compute: more of them at once than cores, each lot with a broker of its own.
WORKERS ?= 3
# Of `make soak`, in which things are broken.
MINUTES ?= 5
# What runs on containers: whatever asks for a broker that may be one.
CONTAINER_TESTS ?= tests/broker
# Inputs of `make fuzz`: damaged batches of events and what all other readers are given.
FUZZ_CASES ?= 1000000

.DEFAULT_GOAL := help
.PHONY: help demo test containers image faults reliability headline soak fuzz large gpu lint types check bench lock wheel audit clean python-complete

help: ## Show the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: $(STAMP) ## A year of flights, scored while the model is retrained and swapped
	$(PY) -m modelcast demo

test: $(STAMP) ## Unit tests and tests on a real Kafka broker (under 10 minutes)
	$(PY) -m pytest tests/unit tests/broker -n $(WORKERS) --dist loadfile

containers: $(STAMP) ## The broker tests on Kafka containers (a Docker engine, KAFKA_IMAGE)
	$(PY) -m pytest $(CONTAINER_TESTS) --broker container -m any_broker -n $(WORKERS) --dist loadfile

image: $(STAMP) ## An image of Kafka from what is on this machine, where the official one can't be pulled
	$(PY) docker/kafka_image.py

faults: $(STAMP) ## Publishers, scorers and brokers really killed (some 10 minutes)
	$(PY) -m pytest tests/faults -n 2 --dist loadfile

reliability: $(STAMP) ## Every promise's tests, and docs/RELIABILITY.md from what they told (some 10 minutes; ROWS="27 28")
	$(PY) -m tests.reliability run $(ROWS)

headline: $(STAMP) ## Exactly-once over 100,000 events, clients and brokers killed, versions swapping (some 5 minutes)
	MODELCAST_HEADLINE_EVENTS=100000 $(PY) -m pytest tests/faults/test_headline.py -s

soak: $(STAMP) ## Everything at once on three brokers, broken at random and judged all the time (MINUTES=5, SEED=, REPORT=)
	$(PY) -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(REPORT),--report $(REPORT))

fuzz: $(STAMP) ## Every reader of bytes, 1,000,000 bad inputs by three engines (15 minutes on two cores; FUZZ_CASES=N)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/fuzz.txt
	$(PY) -m tests.fuzz --cases $(FUZZ_CASES)

large: $(STAMP) ## Limits: a model of 5 GB, a thousand models, 256 partitions, events of 50 MB (30 GB of disk, half an hour)
	$(PY) -m pytest tests/large -s

gpu: $(STAMP) ## Tests on a CUDA device, in an environment that has modelcast[gpu]
	MODELCAST_REQUIRE_GPU=1 $(PY) -m pytest tests/gpu

lint: $(STAMP) ## Style
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(STAMP) ## Types
	$(PY) -m mypy

check: lint types faults test ## Everything CI runs

bench: $(STAMP) ## Throughput against its peers
	$(PY) -m benchmarks.stream --json

lock: $(STAMP) ## Pin every dependency anew, with hashes
	$(PY) -m pip install --quiet uv
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --upgrade $(foreach e,$(EXTRAS),--extra $(e)) --group test --group lint pyproject.toml -o requirements/dev.txt
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --upgrade --group pyproject.toml:fuzz -o requirements/fuzz.txt

wheel: $(STAMP) ## The wheel, built twice from what is committed: the same bytes, or an error
	rm -rf dist/first dist/second && mkdir -p dist/first dist/second
	set -e; commit=$$(git rev-parse HEAD); SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct $$commit); \
	export SOURCE_DATE_EPOCH; for n in first second; do git archive $$commit | tar -x -C dist/$$n; \
	  $(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps -w dist/$$n/wheel dist/$$n; done
	cmp dist/first/wheel/*.whl dist/second/wheel/*.whl
	mv dist/first/wheel/*.whl dist/ && rm -rf dist/first dist/second && sha256sum dist/*.whl

audit: ## Known vulnerabilities of every pinned package; asks the package index
	$(PYTHON) -m venv .audit
	.audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	.audit/bin/pip-audit --strict --disable-pip --progress-spinner off -r requirements/dev.txt -r requirements/fuzz.txt

python-complete:
	@$(PYTHON) .ci/check_python.py

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) .ci/check_python.py
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

clean: ## Remove the environment
	rm -rf $(VENV)
