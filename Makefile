# make demo: install, run the quickstart, print its table.   make test: install, run the tests.
# make test-slow: run what takes minutes; every change must pass it too.
PYTHON ?= python3
# Further options of pip, such as --extra-index-url https://download.pytorch.org/whl/cpu
PIP_EXTRA ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet $(PIP_EXTRA) -c constraints.txt
# Public data for the tests: a folder beside this one, unless METAOPT_DATA names another.
DATA := $(abspath $(wildcard ../shared/data))
RESULTS := results/meta_pseudo_labels/quickstart

.PHONY: demo test test-slow lint clean
.DEFAULT_GOAL := demo

demo: $(VENV)/installed
	$(BIN)/metaopt experiment=meta_pseudo_labels/quickstart
	$(BIN)/metaopt-report $(RESULTS)
	@echo "The table is $(RESULTS)/report/table.md; the figures are beside it, and in figures/ of each run."

test: $(VENV)/installed-dev
	METAOPT_DATA=$${METAOPT_DATA:-$(DATA)} HF_HUB_OFFLINE=1 WANDB_MODE=offline OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto $(PYTEST)

test-slow:
	$(MAKE) test PYTEST="-m 'slow and not gpu and not network and not wheel'"

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	    sys.exit(0 if (3, 10) <= v <= (3, 13) else f"metaopt needs Python 3.10 to 3.13, not {v}; set PYTHON=<path>")'
	$(PYTHON) -m venv $(VENV)

# betty-ml 0.2.1 runs on newer versions of Python than it declares.
$(VENV)/installed: setup.cfg constraints.txt | $(VENV)/bin/python
	$(PIP) -e .
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 11))' \
	    || $(PIP) --no-deps --ignore-requires-python betty-ml==0.2.1
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e '.[dev]'
	touch $@
