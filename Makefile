# Two commands do everything on a fresh machine: `make mixtral` and `make test`.
# The environment lives in .venv; the system's Python is only used to create it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Processes that run tests, a file at a time. They hold no timing, so they may share the machine;
# threads that wait for work then sleep, so that they do not take the other process's core.
JOBS ?= 2
OPTIONS := -n $(JOBS) --dist loadfile --no-loadscope-reorder
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest $(OPTIONS)
COVERAGE := OMP_WAIT_POLICY=passive $(BIN)/python -m coverage

.PHONY: help mixtral test test-slow coverage check clean

help:
	@echo "make mixtral            measure the suite mixtral (SUITE=smoke for the smallest, ARGS='...' for options)"
	@echo "make test               the quick tests"
	@echo "make test-slow          the slow ones"
	@echo "make coverage           quick and slow tests, and the share of the GPU's path that they run"
	@echo "make check              formatting, lint, types"
	@echo "make PYTHON=python3.12  another interpreter for a new .venv"

mixtral: $(READY)
	$(BIN)/python -m moebench.suite $(or $(SUITE),mixtral) $(ARGS)

test: $(READY)
	$(PYTEST) $(ARGS)

test-slow: $(READY)
	$(PYTEST) -m slow $(ARGS)

coverage: $(READY)
	$(COVERAGE) erase
	$(COVERAGE) run -m pytest $(OPTIONS)
	$(COVERAGE) run -m pytest $(OPTIONS) -m slow
	$(COVERAGE) combine --quiet
	$(COVERAGE) report --skip-covered --sort=cover --fail-under=97

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*

# Installed again whenever a requirement or a tested version changes.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "moebench needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one, e.g. make $(or $(MAKECMDGOALS),test) PYTHON=python3.12" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
