# Sets up .venv and runs the demo, the tests or the checks. TORCH chooses another build of torch,
# for instance: make demo TORCH="torch==2.13.0 --index-url <index of another build>"
PYTHON ?= python3.11
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check docs examples wheel-smoke clean

demo: $(VENV)/installed
	$(BIN)/mpq demo -o mpq_demo

# A process for each core, with one thread of PyTorch each; the tests of a file share one.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/mypy

# The site of docs/, into site/; what builds it is installed when it is first asked for.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Every script of examples/, each in a folder of its own.
examples: $(VENV)/installed
	$(BIN)/python scripts/run_examples.py

# Builds sdist and wheel, and tries the wheel in an environment of its own; no download.
wheel-smoke: $(VENV)/installed
	tests/smoke/wheel.sh $(BIN)/python

# torch first: a range that admits a newer one would fetch a CUDA build of several gigabytes.
$(VENV)/installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .[dev]
	touch $@

$(VENV)/docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .[docs]
	touch $@

clean:
	rm -rf $(VENV) mpq_demo build site *.egg-info
