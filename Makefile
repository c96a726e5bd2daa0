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

# Every number and figure of docs/results.md. Runs are cached, so it can be stopped and started at will; hours from nothing.
# DATA: Fashion-MNIST's idx files; EMOJI: OpenMoji as 32x32 PNG files, a folder a group.
DATA ?= /usr/share/datasets/fashion-mnist
EMOJI ?= openmoji
.PHONY: results
results: .venv/installed
	$(BIN)/python benchmarks/bias_floor.py
	$(BIN)/python benchmarks/small_batch.py --problem digits fashion openmoji --data $(DATA) --emoji $(EMOJI)
	$(BIN)/python benchmarks/normalizer.py
	$(BIN)/python benchmarks/state_cost.py
	$(BIN)/python benchmarks/tried.py
