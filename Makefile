# Everything needs python3 (3.10 or newer), make and git alone; uv is used when present.

VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
STAMP := $(VENV)/.built

.PHONY: help demo sandbox test lint format all-slow unicore-test conformance-test clean
.PHONY: bench bench-import bench-unicore bench-demo
.DEFAULT_GOAL := help

help:
	@echo "make demo      train at three sites of a sandbox, compare, keep the best"
	@echo "make sandbox   run the sandbox until Ctrl-C, and write .env.sandbox"
	@echo "make test      the fast tests"
	@echo "make lint      ruff and mypy"
	@echo "make all-slow  the slow suites: unicore-test (a real UNICORE server), conformance-test (other people's clients"
	@echo "               and servers), bench (bench-import, bench-unicore, bench-demo)"

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

all-slow: unicore-test conformance-test bench

# Needs java and mvn; where they are not there, the tests are skipped and say so.
unicore-test: $(STAMP)
	$(RUN)/python -m pytest tests/contract tests/unicore -m unicore -rfEs

conformance-test: $(STAMP)
	$(RUN)/python -m pytest tests/conformance -m slow

bench: bench-import bench-unicore bench-demo

bench-demo: $(STAMP)
	$(RUN)/python benchmarks/demo_time.py

bench-import: $(STAMP)
	$(RUN)/python benchmarks/import_cost.py

bench-unicore: $(STAMP)
	$(RUN)/python benchmarks/unicore_poll.py

lint: $(STAMP)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

format: $(STAMP)
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
