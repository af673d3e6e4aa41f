# Two commands on a fresh machine: `make train` and `make test`. Each creates .venv when it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TRAIN_FLAGS ?=
TEST_PROCESSES ?= 2
# Accelerate's launcher gives a process one thread unless it is told otherwise.
THREADS ?= $(shell nproc 2>/dev/null || sysctl -n hw.logicalcpu)

# What of the tests asks the other libraries most: registration, pipelines, schedulers both ways, everything on a Hub.
VERSION_TESTS ?= tests/test_package.py tests/test_probe.py tests/test_pipelines.py tests/test_pipelines_guidance.py \
	tests/test_schedulers_diffusers.py tests/test_hub.py
PIP_INSTALL := -m pip install -qq --disable-pip-version-check

.PHONY: train test test-versions bench docs lint clean

# The last packages are peers that tests and benchmarks measure against. They come without their dependencies: torchvision
# and pytorch-fid serve their image folders, data sets and scores only, and stand-ins take their place.
$(STAMP): pyproject.toml constraints.txt
	@echo "Installing PyTorch and the other packages into $(VENV): some minutes, this time only."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt --no-deps \
		denoising-diffusion-pytorch smalldiffusion torch-fidelity
	touch $(STAMP)

# Trains a class-conditional model on the digits inside the package for five minutes, then saves a pipeline and its
# pictures in outputs/mnist-classes.
train: $(STAMP)
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		--num_cpu_threads_per_process $(THREADS) \
		train/train_conditional.py --recipe mnist-classes --max_train_seconds 300 \
		--overwrite_output_dir $(TRAIN_FLAGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal

# The documentation in docs/_build, tutorials executed in short form (DOCS_FAST=0 trains them as long as a reader would).
docs: $(VENV)/.docs-installed
	DOCS_FAST=$(or $(DOCS_FAST),1) OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "Documentation in docs/_build/html/index.html"

$(VENV)/.docs-installed: $(STAMP)
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e ".[docs]"
	touch $@

# The oldest releases that pyproject.toml allows, then the newest there are; each in an environment of its own.
test-versions: .venv-oldest/.installed .venv-newest/.installed
	for venv in .venv-oldest .venv-newest; do \
		$$venv/bin/python -m pip list 2>/dev/null | \
			grep -iE "^(accelerate|datasets|diffusers|huggingface.hub|safetensors|torch|transformers) "; \
		OMP_NUM_THREADS=1 $$venv/bin/python -m pytest -q $(VERSION_TESTS) || exit 1; \
	done

.venv-oldest/.installed: pyproject.toml constraints-oldest.txt
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python $(PIP_INSTALL) $(shell grep ^torch== constraints.txt)
	.venv-oldest/bin/python $(PIP_INSTALL) -c constraints-oldest.txt -e ".[eval]" pytest werkzeug
	touch $@

.venv-newest/.installed: pyproject.toml
	test -x .venv-newest/bin/python || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python $(PIP_INSTALL) $(shell grep ^torch== constraints.txt)
	.venv-newest/bin/python $(PIP_INSTALL) --upgrade -e ".[eval]" pytest werkzeug
	touch $@

# Every benchmark, each stopped after so many seconds at most: under 40 minutes in all. What a longer run would say more
# exactly (three seeds, peers up to ten times our time, more samples) is in each file's first lines. All of them run;
# make fails when one of them did, but for those that were stopped (124), and says so of each at the end.
BENCH_DATA ?= embedded
BENCH_CLASSIFIER ?= outputs/bench-classifier
BENCH_RUNS ?= outputs/bench-runs
BENCH_STATUS ?= outputs/bench-status
TIMEOUT := $(shell command -v timeout)
part = $(if $(TIMEOUT),$(TIMEOUT) $(1)) $(BIN)/python benchmarks/$(2); echo "$(firstword $(2)) $$?" >>$(BENCH_STATUS)

bench: $(STAMP) $(BENCH_CLASSIFIER)/config.json
	mkdir -p $(dir $(BENCH_STATUS)) && rm -rf $(BENCH_STATUS) $(BENCH_RUNS)
	$(call part,120,scheduler_step.py)
	$(call part,120,model_speed.py --threads $(THREADS) --repeats 3)
	$(call part,120,model_table.py --threads $(THREADS) --repeats 1)
	$(call part,60,freed_memory.py --threads $(THREADS) --turns 5 --turn_seconds 2)
	$(call part,480,train_throughput.py --threads $(THREADS) --batch_size 32 --turns 3 --turn_seconds 3)
	$(call part,720,time_to_quality.py --threads $(THREADS) --classifier $(BENCH_CLASSIFIER) --dataset_name $(BENCH_DATA) \
		--seeds 0 --budgets 90 180 --num_samples 500 --num_inference_steps 15 --output_dir $(BENCH_RUNS) \
		--peer_seconds 90 --peer_points 1 --peer_sampling_steps 25 --package_guidance 6)
	$(call part,360,sampling_steps.py --threads $(THREADS) --classifier $(BENCH_CLASSIFIER) --dataset_name $(BENCH_DATA) \
		--model $(BENCH_RUNS)/seed-0-90s --num_samples 200)
	$(call part,330,sampling_speed.py --threads $(THREADS) --model $(BENCH_RUNS)/seed-0-90s --num_images 1000 \
		--sampler_images 250)
	@echo "Exit status of each part (124: stopped at the end of its time):" && cat $(BENCH_STATUS)
	@! grep -vqE " (0|124)$$" $(BENCH_STATUS)

$(BENCH_CLASSIFIER)/config.json: $(STAMP)
	$(BIN)/diffusers-ext classifier train --dataset_name $(BENCH_DATA) --max_train_seconds 60 --output_dir $(BENCH_CLASSIFIER)

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest outputs
