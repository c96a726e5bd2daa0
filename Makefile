# `make demo` and `make test` each work on their own from a fresh clone, and again.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test lint clean
demo: .venv/installed
	$(BIN)/sogclr demo

test: .venv/installed
	$(BIN)/python -m pytest -n 2

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The file is touched last: an installation that was cut off is done again.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"sogclr needs Python 3.11 or newer, and $(PYTHON) is {sys.version.split()[0]}; say make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,onnx,dev]'
	touch $@

clean:
	rm -rf .venv
