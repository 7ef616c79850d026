# Sets up .venv and runs the demo, the tests or the checks. TORCH chooses another build of torch,
# for instance: make demo TORCH="torch==2.13.0 --index-url <index of another build>"
PYTHON ?= python3.11
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check wheel-smoke clean

demo: $(VENV)/installed
	$(BIN)/mpq demo -o mpq_demo

test: $(VENV)/installed
	$(BIN)/python -m pytest

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/mypy

# Builds sdist and wheel, and tries the wheel in an environment of its own; no download.
wheel-smoke: $(VENV)/installed
	tests/smoke/wheel.sh $(BIN)/python

# torch first: a range that admits a newer one would fetch a CUDA build of several gigabytes.
$(VENV)/installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .[dev]
	touch $@

clean:
	rm -rf $(VENV) mpq_demo build *.egg-info
