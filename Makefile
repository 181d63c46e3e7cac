# Everything needs python3 (3.10 or newer), make and git alone; uv is used when present.

VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
STAMP := $(VENV)/.built

.PHONY: help demo sandbox test lint format all-slow unicore-test conformance-test fault-test fault-patterns clean
.PHONY: bench bench-import bench-unicore bench-firecrest bench-demo bench-wait bench-many bench-prefect bench-pipeline bench-page scale-test
.DEFAULT_GOAL := help

help:
	@echo "make demo      train at three sites of a sandbox, compare, keep the best"
	@echo "make sandbox   run the sandbox until Ctrl-C, and write .env.sandbox"
	@echo "make test      the fast tests"
	@echo "make lint      ruff and mypy"
	@echo "make all-slow  the slow suites: unicore-test (a real UNICORE server), conformance-test (other people's clients"
	@echo "               and servers), fault-test (every fault at every step: build/fault-matrix.json),"
	@echo "               fault-patterns (common ways to submit, under the same faults),"
	@echo "               scale-test (a thousand runs in one flow; SCALE_RUNS=100 for fewer),"
	@echo "               bench (bench-import, bench-unicore, bench-firecrest, bench-demo, bench-wait, bench-many,"
	@echo "               bench-prefect, bench-pipeline; benchmarks/results.json, and from it docs/benchmarks.md)"

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "prefect-mantik needs Python 3.10 or newer; set PYTHON=/path/to/python3"; exit 1; }
	@echo "building $(VENV): about a minute and a half with pip, less with uv"
	@start=$$(date +%s); \
	if [ -n "$(UV)" ]; then \
		uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
		uv pip install --quiet --python $(RUN)/python -e '.[dev]'; \
	else \
		$(PYTHON) -m venv $(VENV) && \
		$(RUN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'; \
	fi && echo "built $(VENV) in $$(( $$(date +%s) - start )) s"
	@touch $@

demo: $(STAMP)
	@$(RUN)/prefect-mantik demo $(if $(KEEP),--keep)

sandbox: $(STAMP)
	@$(RUN)/prefect-mantik sandbox --env-file .env.sandbox

test: $(STAMP)
	$(RUN)/python -m pytest -n 3 --dist loadfile -m "not slow and not network"

all-slow: unicore-test conformance-test fault-test fault-patterns scale-test bench

# Needs java and mvn; where they are not there, the tests are skipped and say so.
unicore-test: $(STAMP)
	$(RUN)/python -m pytest tests/contract tests/unicore -m unicore -rfEs

conformance-test: $(STAMP)
	$(RUN)/python -m pytest tests/conformance -m slow

# Every kind of site, every fault, every step, with processes that are really killed: see tests/faults.
fault-test: $(STAMP)
	$(RUN)/python -m tests.faults

# The same faults on three ways to submit from a flow that are in common use, beside ours.
fault-patterns: $(STAMP)
	$(RUN)/python -m tests.faults.patterns

# Very many runs in one flow, at all kinds of site. SCALE_RUNS says how many.
scale-test: $(STAMP)
	$(RUN)/python -m pytest tests/scale -m slow -s

bench: bench-import bench-unicore bench-firecrest bench-demo bench-wait bench-many bench-prefect bench-pipeline bench-page

# What waiting costs a site, Prefect and this machine.
bench-wait: $(STAMP)
	$(RUN)/python benchmarks/wait_lateness.py
	$(RUN)/python benchmarks/wait_unicore.py
	$(RUN)/python benchmarks/wait_rounds.py
	$(RUN)/python benchmarks/wait_cpu.py

# Memory of waiting runs, and a day of 10,000 of them.
bench-many: $(STAMP)
	$(RUN)/python benchmarks/wait_many.py

# What waits ask of Prefect; several processes that wait.
bench-prefect: $(STAMP)
	$(RUN)/python benchmarks/wait_prefect.py

bench-pipeline: $(STAMP)
	$(RUN)/python benchmarks/pipeline.py

bench-page: $(STAMP)
	$(RUN)/python benchmarks/report.py

bench-demo: $(STAMP)
	$(RUN)/python benchmarks/demo_time.py

bench-import: $(STAMP)
	$(RUN)/python benchmarks/import_cost.py

bench-unicore: $(STAMP)
	$(RUN)/python benchmarks/unicore_poll.py

bench-firecrest: $(STAMP)
	$(RUN)/python benchmarks/firecrest_submits.py

lint: $(STAMP)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/mypy --config-file tests/mypy.ini tests benchmarks

format: $(STAMP)
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
