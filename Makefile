# Commands of MIRL; `make` lists them. They need only make, git and Python 3.11, 3.12 or 3.13.
# To choose the interpreter:  make setup PYTHON=python3.12

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup train test oracles sb3-suite lint types docs check reliability gpu tensorboard clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: .venv/.dev  ## create .venv and install MIRL with its development tools

train: .venv/.fast  ## train and evaluate, e.g. make train ARGS="task=goto_door fusion=bilinear"
	$(BIN)/python train.py $(ARGS)

test: .venv/.dev  ## run the tests, e.g. make test ARGS="-k fusion"
	$(BIN)/python -m pytest $(ARGS)

# hypnettorch installs a package `tests` beside its own, which would hide the folder tests/ here.
oracles: .venv/.dev  ## test against hypnettorch, in a folder of its own
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target .oracles hypnettorch==0.0.4
	PYTHONPATH=.oracles $(BIN)/python -m pytest -n 0 tests/policies/fusions/test_adapter.py \
		-k hypnettorch

sb3-suite: .venv/.dev  ## run Stable-Baselines3's tests with MIRL's PPO and A2C (ARGS="run gae")
	$(BIN)/python benchmarks/sb3_suite.py $(ARGS)

lint: .venv/.dev  ## check style, formatting and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

# mypy needs a folder named mirl; the root of the repository is that package, whatever its name.
types: .venv/.dev  ## check types
	@mkdir -p .mypy && ln -sfn .. .mypy/mirl
	MYPYPATH=.mypy $(BIN)/mypy -p mirl.agents -p mirl.configs -p mirl.envs -p mirl.policies \
		-m mirl.train -m mirl.eval -m mirl.compare -m mirl.watch -m mirl.play -m mirl.card \
		-m mirl.__main__

docs: .venv/.dev  ## build the documentation site in site/ (ARGS: of mkdocs build)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build $(ARGS)

check: test oracles lint types  ## run test, oracles, lint and types

reliability: .venv/.dev  ## run the reliability tests (an hour; ARGS=--quick: a few minutes)
	$(BIN)/python benchmarks/reliability.py $(ARGS)

gpu: .venv/.dev  ## test and measure MIRL on one GPU (at most eight minutes)
	$(BIN)/python benchmarks/gpu.py $(ARGS)

tensorboard: .venv/.fast  ## show the training curves of runs/
	$(BIN)/tensorboard --logdir runs $(ARGS)

clean:  ## remove caches and build outputs, but not .venv and runs/
	rm -rf build dist site .mkdocs *.egg-info .oracles .sb3_suite
	rm -rf .mypy .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . \( -path ./.venv -o -path ./.git -o -path ./runs -o -path ./comparisons -o -path ./sweeps \) -prune \
		-o -type d -name __pycache__ -exec rm -rf {} +

# Two stamp files: training needs .[fast], which .[dev] includes, so installing dev touches both.
.venv/.fast: .venv/bin/pip pyproject.toml constraints.txt
	@echo "Installing MIRL into .venv (once, a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[fast]"
	@touch $@

.venv/.dev: .venv/bin/pip pyproject.toml constraints.txt
	@echo "Installing MIRL and its development tools into .venv (once, a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch .venv/.fast $@

# venv installs pip last: if pip is missing, the environment is incomplete and is created again.
.venv/bin/pip:
	@command -v $(PYTHON) >/dev/null || { \
		echo "MIRL needs Python 3.11, 3.12 or 3.13; '$(PYTHON)' was not found." \
			"Name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "MIRL needs Python 3.11, 3.12 or 3.13; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
			"Name another: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
