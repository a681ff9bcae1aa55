# The two commands that a newcomer needs are `make demo` and `make test`.
# Each creates .venv, installs the pinned set of constraints.txt and does its job.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
DEV    := beartype hypothesis import-linter 'pyright[nodejs]' pytest pytest-timeout pytest-xdist ruff tensorly

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: readme setup demo test test-slow test-floor verify fix clean

setup: $(STAMP)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "moegraft needs Python 3.11 or newer, got " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all]' $(DEV)
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: setup
	$(BIN)/moegraft sweep --preset paper --host nano:sft-dpo --donor nano:rlvr --limit 200 --out runs/demo

# One process per core, one thread each: tiny models gain nothing from more threads.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto

# Simulations of levels and coverage (4 minutes of processor time), fuzzing and kills.
test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m slow --timeout 3600 --durations 20

# The oldest versions that pyproject.toml admits, in an environment of their own.
test-floor:
	test -x .venv-floor/bin/python || $(PYTHON) -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet -c constraints-min.txt torch
	.venv-floor/bin/python -m pip install --quiet -c constraints-min.txt -e '.[all]' $(DEV)
	OMP_NUM_THREADS=1 .venv-floor/bin/python -m pytest -q -n auto

verify: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

fix: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

readme: setup
	$(BIN)/python docs/render_readme.py

clean:
	rm -rf $(VENV) .venv-floor build dist
