# Every target installs what it needs into .venv once: the pinned packages of requirements.lock, then rankwise itself.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CODE := src tests studies
TORCH := 2.13.0
WORKERS ?= 2

# Nothing below the install needs a network. One thread a process: the test workers share the cores.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1

PYTEST := $(OFFLINE) OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: tables help install demo test slow quantised loops gpu browser docs lint format bench lock clean
.DEFAULT_GOAL := help

help:  ## Show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

install: $(INSTALLED)  ## Install the pinned packages and rankwise into .venv

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: install  ## A race of four configurations on a small task: no network, no GPU, a few minutes
	$(OFFLINE) $(BIN)/rankwise demo --out demo-run --overwrite

test: lint  ## Lint, types and every test that is quick and needs no accelerator
	$(PYTEST) -m "not gpu and not slow and not distributed and not browser" $(ARGS)

slow: install  ## The tests that take long or start several processes
	$(PYTEST) --durations=25 -m "(slow or distributed) and not gpu" $(ARGS)

quantised: install  ## Paths beside weights in 4 and 8 bits: installs the libraries first
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps bitsandbytes==0.50.2 torchao==0.18.0
	$(PYTEST) -m "not gpu" tests/method/test_quantised_bases.py tests/runs/building/test_quantised.py \
		tests/test_recipes.py -k "quantised or qlora"

loops: install  ## Lightning, Ray Train, a study on a Ray cluster, W&B and MLflow: installs the libraries first
	$(BIN)/python -m pip install --quiet --disable-pip-version-check lightning==2.6.6 ray==2.60.0 \
		wandb==0.31.0 mlflow-skinny==3.17.2
	$(PYTEST) -n 0 tests/search/test_logged.py -k "wandb or mlflow"
	$(PYTEST) -n 0 -m "slow and not gpu" tests/test_training_examples.py tests/study/test_on_ray.py -k "lightning or ray"

gpu: install  ## What only a machine with an NVIDIA GPU can show; skipped where there is none
	$(PYTEST) -n 1 -m gpu $(ARGS)

browser: install  ## The report in a headless Chromium (Debian: chromium chromium-driver); skipped where there is none
	$(PYTEST) -n 0 -m browser $(ARGS)

docs: install  ## The documentation site into build/site; a warning, such as a link that leads nowhere, is an error
	$(BIN)/mkdocs build --strict

lint: install  ## Formatting, lint and types, nothing changed
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy $(CODE)

format: install  ## Format and apply safe fixes
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

bench: install  ## Run every script in benchmarks/: each prints a table and writes it to results/bench/
	set -e; for script in benchmarks/[a-z]*.py; do echo "== $$script"; \
	$(OFFLINE) OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python "$$script"; done

tables: install  ## Every table and picture of the pages that a study is behind, anew from results/
	$(BIN)/python -m studies.where_it_pays.table --into docs/where-it-pays.md docs/studies/*.md
	$(BIN)/python -m studies.where_it_pays.picture docs/loss_against_parameters.svg
	$(BIN)/python docs/search_space.py docs/search_space.svg

# Resolve the ranges of pyproject.toml anew and pin the outcome. A CPU build's local version ("+cpu") is left out, so
# that pip takes whichever build of that release a machine provides; so are the CUDA packages, which torch pins itself.
lock:  ## Resolve the dependencies anew into requirements.lock
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check "setuptools>=77" torch==$(TORCH)
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation ".[dev]"
	{ sed -n '/^#/p' requirements.lock; \
	  build/lock/bin/python -m pip freeze --all --exclude pip --exclude rankwise \
	  | sed -E 's/\+[a-z0-9.]+$$//' | grep -viE '^(nvidia|cuda|triton)'; } > build/requirements.lock
	mv build/requirements.lock requirements.lock

clean:  ## Remove what the other targets made
	rm -rf $(VENV) build dist demo-run .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info
