# The commands of a checkout; `make` alone lists them. `make train PYTHON=python3.12` chooses the interpreter.
.DEFAULT_GOAL := help
.PHONY: help install install-gpu train test lint lock clean
export PYTHON
# Without compiled modules each of a run's processes would compile vLLM, torch and the rest anew at its start.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
# What starts the installer; which interpreter the environment gets is the installer's business.
STARTER := $(or $(shell command -v python3),$(PYTHON))

# Test files that run side by side. More of them are faster still, but tests with deadlines then want for a processor.
TEST_WORKERS := 2
# CI runs them all; by hand those that start job after job are left out, as they take as long as all others.
CHOSEN := $(if $(CI)$(ALL),,-m "not long")

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/make \1\t\2/p' Makefile | expand -t 20

install:  ## make or refresh .venv; does nothing where it is current
	@test -n "$(STARTER)" || { echo "install: no python3 on the PATH: install Python 3.11, 3.12 or 3.13." >&2; exit 1; }
	@$(STARTER) launch/install.py

install-gpu:  ## make or refresh .venv-gpu, with the GPU builds of torch and vLLM (CUDA 13: NVIDIA driver 580 or newer)
	@test -n "$(STARTER)" || { echo "install: no python3 on the PATH: install Python 3.11, 3.12 or 3.13." >&2; exit 1; }
	@$(STARTER) launch/install.py gpu

train: install  ## install, cold-start a small policy, train it with GRPO, print the table
	$(BIN)/grpo sft configs/quickstart_sft.yaml resume=auto
	$(BIN)/grpo train configs/quickstart.yaml resume=auto

test: install  ## install, then the tests; ALL=1 adds the long ones, which CI runs; TEST_WORKERS=1 runs one file at a time
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(CHOSEN) -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --durations=25 || { \
		echo "test: what failed beside others is judged by itself, and named at the end"; \
		OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(CHOSEN) --last-failed --last-failed-no-failures none -rpfE; }

lint: install  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: install  ## resolve pyproject.toml into both locks; OPTIONS=--upgrade renews every pin
	@$(STARTER) launch/install.py lock $(OPTIONS)

clean:  ## remove both environments and what tools left; runs/ stays
	rm -rf .venv .venv-gpu build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
