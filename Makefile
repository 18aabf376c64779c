# make demo   the whole path on drawn data: demo → prepare → train → reconstruct (examples/quickstart.sh)
# make test   linters, types, all tests, and the built wheel in an empty environment
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint unit wheel format clean

demo: $(VENV)/installed
	PATH="$(abspath $(BIN)):$$PATH" bash examples/quickstart.sh

test: lint unit wheel

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(VENV)/installed
	$(BIN)/pytest -n 2

wheel: $(VENV)/installed
	PYTHON="$(PYTHON)" bash tests/wheel.sh "$(abspath $(BIN))/python"

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
