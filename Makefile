# Every target needs nothing but Python 3.11 and pip: the first one that runs makes .venv.
PYTHON ?= python3.11
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test check bench studies gpu slow clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 8

demo: .venv/ready ## pixels to tokens to pictures in 4 to 12 minutes; writes demo/index.html
	$(BIN)/tmm demo --out demo

test: .venv/ready ## all tests but the slow ones
	$(BIN)/python -m pytest -q -m "not slow" -n auto --dist worksteal

slow: .venv/ready ## learning runs that take minutes
	$(BIN)/python -m pytest -q -m slow

check: .venv/ready ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready ## timed comparisons, interleaved, parity first
	$(BIN)/python -m pytest -q benchmarks --benchmark-only
	$(BIN)/python benchmarks/plots.py

studies: .venv/ready ## what tokenizers reach on real images; hours on one core, --resume goes on (see benchmarks/README.md)
	for name in rate_distortion alignment text_and_fusion characters prefixes; do \
	  $(BIN)/python benchmarks/studies/$$name.py --resume --out benchmarks/results/$$(date +%F)-$$(echo $$name | tr _ -).json || exit 1; \
	done

gpu: .venv/ready ## CUDA kernels on a GPU: parity, timed comparisons, roofline
	$(BIN)/python benchmarks/gpu.py

.venv/ready: pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,dev]'
	touch $@

clean: ## remove everything that make made
	rm -rf .venv demo runs dist
