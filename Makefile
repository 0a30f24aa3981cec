# Every target works in a fresh clone: what it needs, it installs into .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install test lint format demo

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
