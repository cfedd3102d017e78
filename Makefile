HOST ?= 127.0.0.1
PORT ?= 8000
MODEL ?= demo
GUARD_HOME ?= ./.guard
TESTS ?= tests
# threads of torch in the tests: on busy cores more of them wait for each other
THREADS ?= 1

# the folder kernels/ must never be importable under that name: keep the working directory off sys.path
export PYTHONSAFEPATH = 1
export GUARD_HOME

.PHONY: setup serve demo test lint bench docs

setup:
	@deploy/setup.sh

serve: setup
	@exec .venv/bin/guard serve $(MODEL) --host $(HOST) --port $(PORT)

demo: setup
	@.venv/bin/guard demo --url http://$(HOST):$(PORT)

test: setup
	@deploy/setup.sh prometheus
	@OMP_NUM_THREADS=$(THREADS) .venv/bin/pytest $(TESTS)

lint: setup
	.venv/bin/ruff check .
	.venv/bin/mypy guard tests docs/generate.py

bench: setup
	.venv/bin/python bench/throughput.py --out bench/results/throughput.json
	.venv/bin/python bench/report.py

docs: setup
	.venv/bin/python docs/generate.py
