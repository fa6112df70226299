# make demo: install, train the quickstart's models in parallel, print the table.   make test: install, run the tests.
# make test-slow: run what takes minutes; every change must pass it too.
PYTHON ?= python3
# Further options of pip, such as --extra-index-url https://download.pytorch.org/whl/cpu
PIP_EXTRA ?=
# --quiet hides what pip downloads
QUIET ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install $(QUIET) $(PIP_EXTRA) -c constraints.txt
# Public data for the tests: a folder next to this one, unless METAOPT_DATA names another.
DATA := $(abspath $(wildcard ../shared/data))
# Processes that train at once in the demo and for the tables
JOBS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
RESULTS := results/meta_pseudo_labels/quickstart

# Which tables to recompute: TABLES=<family> or TABLES=<family>/<experiment>; all by default. EXACT=1: to the bit.
TABLES ?=
EXACT ?=

# Which libraries to compare with, as benchmarks/peers names them; all by default, into benchmarks/peers.md.
PEERS ?=

.PHONY: demo test test-slow tables benchmarks lint docs clean
.DEFAULT_GOAL := demo

demo: $(VENV)/installed
	@echo "Training 4 methods on $(JOBS) cores, 3 seeds of each together; a line each as it is done."
	@start=$$(date +%s); OMP_NUM_THREADS=1 $(BIN)/metaopt experiment=meta_pseudo_labels/quickstart \
	    hydra/launcher=joblib hydra.launcher.n_jobs=$(JOBS) \
	    && echo "Trained in $$(( $$(date +%s) - start )) s."
	@$(BIN)/metaopt-report $(RESULTS)
	@echo
	@echo "From six labels, a student taught by a teacher with consistency training (UDA) nearly solves Two"
	@echo "Moons, where supervised training and plain pseudo labels do not; with feedback from the student"
	@echo "(MPL) it does as well: on this task the gain is the consistency loss's."
	@echo "Figures: $(RESULTS)/report, and figures/ in the folder of each run."
	@echo "Try next: $(BIN)/metaopt problem=ridge; $(BIN)/metaopt-new mine; $(BIN)/metaopt --help"

test: $(VENV)/installed-dev
	METAOPT_DATA=$${METAOPT_DATA:-$(DATA)} HF_HUB_OFFLINE=1 WANDB_MODE=offline OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST)

test-slow:
	$(MAKE) test PYTEST="-m 'slow and not gpu and not network and not wheel'"

tables: $(VENV)/installed
	METAOPT_DATA=$${METAOPT_DATA:-$(DATA)} OMP_NUM_THREADS=1 $(BIN)/metaopt tables $(TABLES) --jobs $(JOBS) $(if $(EXACT),--exact)

benchmarks: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.peers $(PEERS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The site is site/index.html."

clean:
	rm -rf $(VENV) benchmarks/.environments build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	    sys.exit(0 if (3, 10) <= v <= (3, 13) else f"metaopt needs Python 3.10 to 3.13, not {v}; set PYTHON=<path>")'
	$(PYTHON) -m venv $(VENV)

# betty-ml 0.2.1 runs on newer versions of Python than it declares.
$(VENV)/installed: setup.cfg constraints.txt | $(VENV)/bin/python
	@date +%s > $(VENV)/started
	$(PIP) -e '.[parallel]'
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 11))' \
	    || $(PIP) --no-deps --ignore-requires-python betty-ml==0.2.1
	@echo "Installed in $$(( $$(date +%s) - $$(cat $(VENV)/started) )) s."
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e '.[dev]'
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) -e '.[docs]'
	touch $@
