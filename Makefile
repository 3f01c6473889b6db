# `make demo` and `make test` do all their own set-up: a virtual environment in .venv, with the versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Bytecode is left to the first import: compiling every module of every package takes a third of the installation. Where
# the environment forbids to keep it, every process would compile anew, which costs seconds each.
export PYTHONDONTWRITEBYTECODE :=
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install -qq --no-compile
TRL_1_12 := $(VENV)/trl-1.12.0

# Nothing here may depend on the network or send telemetry; two threads keep runs comparable on machines of any size.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
THREADS := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} TOKENIZERS_PARALLELISM=false
# Workers of one thread each: hardly a test is large enough to use two threads. A file's tests share its fixtures.
PYTEST = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n $${PYTEST_WORKERS:-2} --dist loadfile
# What no version of TRL can change is tested once, on the newest.
WITHOUT_TRL := $(addprefix --ignore=tests/,objectives kl_control monitoring planner reports evaluation/test_intervals.py \
	$(addprefix actor_critic/test_,merge.py architectures.py quantized.py float_head.py))

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo instruct test test-trl-1.12 quality format clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9.-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.run-installed  ## Detoxify a small model offline on the CPU; the path of summary.json is printed last
	@$(OFFLINE) $(THREADS) $(BIN)/python recipes/detoxification.py $(ARGS)

instruct: $(VENV)/.run-installed  ## Teach a small model to follow instructions offline on the CPU, in three steps; likewise
	@$(OFFLINE) $(THREADS) $(BIN)/python recipes/instruction_following.py $(ARGS)

test: $(VENV)/.dev-installed  ## Run the tests; ARGS="tests/rewards -k length" chooses some of them
	@$(OFFLINE) $(PYTEST) $(ARGS)

test-trl-1.12: $(VENV)/.dev-installed $(TRL_1_12)  ## Run the tests on the oldest TRL, the last with a PPO: parity with it too
	@PYTHONPATH=$(TRL_1_12) $(OFFLINE) $(PYTEST) $(or $(ARGS),$(WITHOUT_TRL))

quality: $(VENV)/.dev-installed  ## Check format, lint, docstrings and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(VENV)/.dev-installed  ## Apply the formatter and the safe lint fixes
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:  ## Remove the virtual environment and the caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python %d.%d is too old: install 3.11 or newer and run make PYTHON=python3.11" % sys.version_info[:2])'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# A stamp is written only after pip succeeded, so an interrupted installation is taken up again by the next make.
$(VENV)/.run-installed: $(VENV)/.created pyproject.toml setup.py constraints.txt
	@echo "Installing trl_ext into $(VENV) (a minute or two, once) ..."
	@$(PIP_INSTALL) -c constraints.txt -e .
	@touch $@

$(VENV)/.dev-installed: $(VENV)/.created pyproject.toml setup.py constraints.txt
	@echo "Installing trl_ext and its development tools into $(VENV) (a minute or two, once) ..."
	@$(PIP_INSTALL) -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/.run-installed

# TRL alone in a folder of its own, put before the environment's: everything else stays as pinned.
$(TRL_1_12): $(VENV)/.created
	@$(PIP_INSTALL) --no-deps --upgrade --target $@ trl==$(patsubst trl-%,%,$(notdir $@))
