# Two commands on a fresh machine: `make train` and `make test`. Each creates .venv when it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TRAIN_FLAGS ?=
TEST_PROCESSES ?= 2
# Accelerate's launcher gives a process one thread unless it is told otherwise.
THREADS ?= $(shell nproc 2>/dev/null || sysctl -n hw.logicalcpu)

.PHONY: train test lint clean

# The last package is a peer that tests and benchmarks measure against. It comes without its dependencies: torchvision and
# pytorch-fid serve its image folders and scores only, and stand-ins take their place.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt --no-deps denoising-diffusion-pytorch
	touch $(STAMP)

# Trains on the digits inside the package for minutes, then saves a pipeline and its pictures in outputs/mnist.
train: $(STAMP)
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		--num_cpu_threads_per_process $(THREADS) \
		train/train_unconditional.py --recipe train/recipes/mnist.yaml --overwrite_output_dir $(TRAIN_FLAGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadgroup

clean:
	rm -rf $(VENV) outputs
