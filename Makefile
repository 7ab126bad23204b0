# `make demo` and `make test` build their own environment in .venv, once; nothing else is needed but Python 3.11.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: help demo test lint types imports pytest browser standin aot docs readme format wheel wheel-native clean

PYTHON ?= python3
# Another build of torch, for a GPU say: make test TORCH=…
TORCH ?= torch==2.13.0
# One job on a fixed number of threads: four oversubscribed threads are slower than one.
THREADS ?= 2
# Tests are small: processes of one thread each, which take files of tests one by one.
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
DOCS_VENV := .venv-docs
DOCS_STAMP := $(DOCS_VENV)/.stamp
PACKAGES := compress kernels/compress_kernels cli/compress_cli
SOURCES := $(PACKAGES) benchmarks tests tools
# Waiting threads sleep: spinning ones triple the time of everything on a busy machine.
OFFLINE = OMP_NUM_THREADS=$(THREADS) OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=default

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

# torch comes first, by itself, so that nothing later replaces the build that was chosen.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Compress needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install --quiet $(TORCH) -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test]"
	$(BIN)/python -c "from compress_kernels import native; print(native.load().note)"
	touch $@

demo: $(STAMP)  ## compress the embedded model with several recipes; writes demo/ (under two minutes on two cores)
	$(OFFLINE) $(BIN)/compress demo --out demo --overwrite

test: lint types imports pytest  ## everything that is checked, from an empty machine

lint: $(STAMP)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

pytest: THREADS := 1
pytest: $(STAMP)
	$(OFFLINE) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST)

browser: $(STAMP)  ## the pages of the report and of the chat in Chromium: no fault that axe finds; pictures in build/screenshots
	@mkdir -p build/screenshots
	COMPRESS_SCREENSHOTS=build/screenshots $(OFFLINE) $(BIN)/python -m pytest tests/compress/report/test_browser.py tests/compress/serve/test_browser.py

standin: $(STAMP)  ## every shipped recipe on a device that is not the CPU, no GPU needed (an hour)
	COMPRESS_TESTS_STANDIN=1 COMPRESS_TESTS_STANDIN_ALL=1 $(OFFLINE) $(BIN)/python -m pytest tests/devices/test_runs.py

aot: $(STAMP)  ## compile the GPU kernels for sm_80, sm_90 and sm_100, no GPU needed
	$(OFFLINE) $(BIN)/python -m tools.aot

# An environment of its own: the site needs neither torch nor the tests' packages.
docs: $(DOCS_STAMP)  ## build docs/ as a site into build/site; any warning fails
	$(DOCS_VENV)/bin/mkdocs build --strict --quiet

$(DOCS_STAMP): pyproject.toml constraints.txt
	rm -rf $(DOCS_VENV)
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet -c constraints.txt "mkdocs>=1.6" "mkdocs-material>=9.6" "mkdocstrings[python]>=0.29"
	touch $@

readme: $(STAMP)  ## measure again what the README shows
	$(OFFLINE) $(BIN)/python -m tools.readme

format: $(STAMP)  ## rewrite the sources in the house style
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

wheel: $(STAMP)  ## dist/compress_llm-*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# For the torch of this environment alone: with another one the kernels are compiled on first use, as without it.
wheel-native: $(STAMP)  ## the same with the CPU kernels in it, compiled for every x86-64 CPU: no compiler is needed
	$(BIN)/python -c "from compress_kernels import native; print(native.prebuild())"
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	rm -r kernels/compress_kernels/native/prebuilt

clean:  ## remove what make has built
	rm -rf $(VENV) $(DOCS_VENV) build dist demo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
