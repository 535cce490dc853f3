# Two commands do all the set-up on a fresh machine: `make search` and `make test`. Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

TASK ?= demo
ARGS ?=

.PHONY: search test check lint types install clean

search: $(READY)
	$(BIN)/python -m adept_tune.search --task $(TASK) $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -m "not slow and not browser and not cluster and not gpu and not network"

check: lint types
	$(BIN)/python -m pytest -m "not gpu and not network"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[test]' -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV)
