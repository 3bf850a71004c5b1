# The commands of a checkout; `make` alone lists them. `make train PYTHON=python3.12` chooses the interpreter.
.DEFAULT_GOAL := help
.PHONY: help install install-gpu train test wheel-check gpu-check lint lock clean
export PYTHON
# Without compiled modules each of a run's processes would compile vLLM, torch and the rest anew at its start.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
# What starts the installer; which interpreter the environment gets is the installer's business.
STARTER := $(or $(shell command -v python3),$(PYTHON))

# The GPU environment, or the interpreter on the PATH if it has torch, transformers and DeepSpeed.
GPU_PYTHON := $(or $(wildcard .venv-gpu/bin/python),$(STARTER))

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

wheel-check: install  ## read vLLM's wheel for GPUs (0.3 GB, downloaded): all that the sources use of it is there
	@$(BIN)/python tests/wheel/fetch_wheel.py build/gpu-wheel
	@VLLM_GPU_WHEEL=$(CURDIR)/build/gpu-wheel $(BIN)/python -m pytest tests/wheel

gpu-check:  ## check and measure on one GPU, in six minutes; PARTS="head attention" chooses; OPTIONS=--list, --help
	@$(GPU_PYTHON) tests/gpu/gpu_check.py $(PARTS) $(OPTIONS)

lint: install  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: install  ## resolve pyproject.toml into both locks; OPTIONS=--upgrade renews every pin
	@$(STARTER) launch/install.py lock $(OPTIONS)

clean:  ## remove both environments and what tools left; runs/ stays
	rm -rf .venv .venv-gpu build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
