# Needs make and Python 3.10-3.13 and nothing else: everything is installed into .venv, on first use and whenever what
# is to be installed has changed. Another Python: make test PYTHON=python3.12. Some tests: make test TESTS=tests/trainers.
PYTHON ?= python3
TESTS ?= tests
JOBS ?= 2
DEMO_OUTPUT ?= demo_output

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
TORCHVISION_OPERATORS = $(wildcard $(VENV)/lib/python*/site-packages/torchvision/_meta_registrations.py)

# nnU-Net works in many processes: threads of numerical libraries in each of them would only be in each other's way.
OMP_NUM_THREADS ?= 1
OPENBLAS_NUM_THREADS ?= 1
MKL_NUM_THREADS ?= 1
export OMP_NUM_THREADS OPENBLAS_NUM_THREADS MKL_NUM_THREADS
# Where set, tests on real images run too, else they are skipped and counted at the end.
export NNUNET_ANOMALY_TEST_DATA

.PHONY: help install test lint demo demo-brain bench clean

help:
	@echo "make test    lint, type checks and all tests (NNUNET_ANOMALY_TEST_DATA=DIR adds those on real images)"
	@echo "make lint    lint and type checks"
	@echo "make bench   the numeric core beside its peers: time and memory, under 15 minutes"
	@echo "make demo    the whole chain on generated data, into $(DEMO_OUTPUT)"
	@echo "make demo-brain  strokes in generated heads, found by networks that know healthy heads, into $(DEMO_OUTPUT)_brain"
	@echo "make install the package and its tools, into $(VENV)"
	@echo "make clean   remove everything that the others made"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || $(MAKE) --no-print-directory torchvision-without-operators
	@touch $@

# Where torch is a CPU build, the registry's torchvision, which is built for CUDA, cannot load its operators and then
# fails to import, as it declares them all the same. nnU-Net imports it (for its Primus trainers, by way of timm) when it
# looks for a trainer by name, but calls no operator. So in our own environment, if need be, they are not declared.
.PHONY: torchvision-without-operators
torchvision-without-operators:
	@echo "torchvision does not match this build of torch: leaving out its operators in $(VENV)"
	: > $(TORCHVISION_OPERATORS)
	$(BIN)/python -c 'import torchvision'

# Two test processes, a file of tests each, whose networks wait for each other without spinning. Property tests take
# the same examples every time (profile ci of hypothesis); pytest alone draws new ones.
test: export OMP_WAIT_POLICY := PASSIVE
test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --hypothesis-profile=ci $(TESTS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: $(INSTALLED)
	$(BIN)/nnunet-anomaly demo -o $(DEMO_OUTPUT)

demo-brain: $(INSTALLED)
	$(BIN)/nnunet-anomaly demo brain -o $(DEMO_OUTPUT)_brain

bench: $(INSTALLED)
	$(BIN)/python benchmarks/numeric_core.py

clean:
	rm -rf $(VENV) $(DEMO_OUTPUT) $(DEMO_OUTPUT)_brain build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
