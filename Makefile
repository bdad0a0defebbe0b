# make demo       the whole way on six subjects made from the MNI template, under 10 minutes on 2 cores
# make test       ruff, mypy and all quick tests
# make test-long  the tests marked slow as well
# Each makes .venv and installs into it first, once: again only when pyproject.toml changes.
# Another Python: make PYTHON=/path/to/python3.12 test

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin

# Asks each to run, since a name on the PATH may be a launcher for a version that is not there.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null && { echo $$p; break; }; done)

# Threads that wait for each other sleep instead of spinning: seven times faster when two trainings share two cores.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test test-long lint
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-demo
	$(BIN)/python -m nnunetv2_ext demo

test: lint
	$(BIN)/python -m pytest -m "not slow"

test-long: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed-%: pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.10 to 3.12 found: install one, or name it with make PYTHON=..." >&2; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[$*]"
	touch $@
