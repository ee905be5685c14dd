# `make demo` and `make test` each work alone on a fresh clone: they make .venv by themselves.
# PYTHON names the interpreter to build it with; by default the first one of 3.11 or later.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
DEMO_STEPS ?= 200
BIN := .venv/bin
# The bytecode of a module is written when it is first imported, not for all of them.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	--constraint constraints.txt
CORE := .venv/core
INSTALLED := .venv/installed
SIMULATOR := .venv/simulator
# Two processes, one file at a time each, in the order of tests/conftest.py: the longest first.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

# The options with which JAX compiles where nobody sets any; make test compiles faster.
AS_USERS := --xla_backend_optimization_level=3 --xla_llvm_disable_expensive_passes=false \
	--xla_cpu_use_fusion_emitters=true

# Each process of the tests would compile again what it imports: 11 s of CPU time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all test-libero libero lint format clean

demo: $(CORE)
	@$(BIN)/octograin demo --num_steps $(DEMO_STEPS)

test: $(INSTALLED)
	@echo "==> running the tests in two processes (make test-all runs the slow ones as well)"
	@$(BIN)/python -m pytest -q $(PARALLEL)

test-all: $(INSTALLED)
	@echo "==> running the tests of \`make test\` and these, which add minutes:"
	@$(BIN)/python -m pytest -q --collect-only -m slow
	@TEST_XLA_FLAGS="$(AS_USERS)" $(BIN)/python -m pytest -q $(PARALLEL) -m "not libero" \
		--jaxtyping-packages=pipeline,train,converters,beartype.beartype

# The LIBERO simulator for evaluation and demonstrations; LIBERO_ASSETS=DIR names its assets.
libero: $(SIMULATOR)
	@$(BIN)/python -m train.evaluate.libero || echo "==> the packages are installed; see above for the rest"

test-libero: $(SIMULATOR)
	@echo "==> running the tests in the LIBERO simulator (a few minutes)"
	@$(BIN)/python -m pytest -q -rs -m libero tests/libero_sim

lint: $(INSTALLED)
	@echo "==> checking style and types"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

format: $(INSTALLED)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf .venv .pytest_cache data/libero_mini runs/demo

# What the package itself needs; all that the demo does.
$(CORE): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or later found; name one:" \
		"make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "==> installing into .venv (once, about a minute)"
	@$(PYTHON) -m venv .venv
	@$(INSTALL) --editable .
	@touch $@

# What tests and checks need on top.
$(INSTALLED): $(CORE)
	@echo "==> installing what tests and checks need (once, about a minute)"
	@$(INSTALL) --editable '.[dev]'
	@# Compiles the bytecode once. Both processes of a first make test would compile all of it.
	@$(BIN)/python -m pytest -q --collect-only > .venv/collected.txt || cat .venv/collected.txt
	@touch $@

# With its dependencies hf-libero would bring torch with CUDA, transformers, wandb and robomimic.
$(SIMULATOR): $(INSTALLED)
	@echo "==> installing the LIBERO simulator into .venv"
	@$(INSTALL) --editable '.[libero]'
	@$(INSTALL) --no-deps robosuite bddl hf-libero
	@touch $@
