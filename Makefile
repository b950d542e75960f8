# `make run` and `make test` set everything up by themselves, in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
JOBS   ?= 2
CONFIG  ?= experiments/rn_digits.py
WORKDIR ?= runs/rn_digits

# Tests run on (virtual) CPU devices wherever they run; training takes what it finds.
PYTEST := JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

.PHONY: help setup run run-all export test test-all lint format lock clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

setup: $(STAMP)  ## create .venv with the exact versions of requirements.lock

$(STAMP): requirements.lock pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

run: $(STAMP)  ## train a sparse network on handwritten digits, in a minute or two
	$(BIN)/python -m experiments.main --config=$(CONFIG) --workdir=$(WORKDIR)

run-all: $(STAMP)  ## train every method at two sparsities with three seeds, compare
	$(BIN)/python -m experiments.sweep --workdir=runs/all

export: $(STAMP)  ## make a .tflite model of what `make run` trained, checked
	$(BIN)/python -m tflite_export convert --workdir=$(WORKDIR) \
	  --out=$(WORKDIR)/model.tflite

test: $(STAMP)  ## the test suite
	$(PYTEST)

test-all: $(STAMP)  ## the test suite with the full product of the contract
	$(PYTEST) -m ""

lint: $(STAMP)  ## style, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP)  ## put the code into form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The lock holds for every platform and every Python that we support.
lock:  ## write requirements.lock anew from pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest \
	  --python-version 3.11 --upgrade \
	  --extra dev --no-emit-index-url --no-emit-find-links --no-annotate \
	  --custom-compile-command "make lock" --output-file requirements.lock \
	  pyproject.toml

clean:  ## remove what building and testing leave behind, and .venv
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .jax_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
