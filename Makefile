# `make` alone lists what can be made. PYTHON=python3.12 picks another Python, VENV=DIR another
# place for the environment, ARGS='...' adds to the command that a target runs, WORKERS=4 tests in
# so many processes.

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/long.py
TESTS ?=
WORKERS ?= 2
ARGS ?=

python := $(VENV)/bin/python
ready := $(VENV)/.ready
ready_dev := $(VENV)/.ready-dev
PARITY_VENV ?= .venv-parity
parity_python := $(PARITY_VENV)/bin/python
ready_parity := $(PARITY_VENV)/.ready
BENCH_VENV ?= .venv-bench
bench_python := $(BENCH_VENV)/bin/python
ready_bench := $(BENCH_VENV)/.ready
stories := data/built/shape_stories/tokenizer.json
pick_constraints = constraints/py3$$($(1) -c 'import sys; print(min(sys.version_info[1], 12))').txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
BENCH ?= step masking attention loss memory reading decoding

PARITY ?=
SWEEP ?= configs/sweep.py
ROWS ?= runs/sweep

.PHONY: same-python help setup setup-dev data train sweep notebook test parity bench lint format constraints clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(ready)  ## create .venv and install what the commands need

setup-dev: $(ready_dev)  ## the same, and what tests and style checks need

data: $(stories)  ## build the built-in data set, shape_stories

train: $(stories)  ## teach the small recipe (CONFIG=configs/long.py, ARGS='--config.seed=1')
	$(python) -m long_vivit.train --config=$(CONFIG) $(ARGS)

sweep: $(stories)  ## teach a grid of variants (SWEEP=configs/sweep.py:laptop for a smaller one)
	$(python) -m long_vivit.sweep --config=$(SWEEP) $(ARGS)

notebook: $(ready_dev)  ## run notebooks/memory_recall.ipynb in place, on the rows in ROWS=runs/sweep
	ROWS=$(abspath $(ROWS)) $(python) -m jupyter_core execute --inplace notebooks/memory_recall.ipynb

test: $(ready_dev)  ## run the tests (TESTS=tests/test_config.py for some)
	$(python) -m pytest -n $(WORKERS) --dist loadfile $(TESTS) $(ARGS)

parity: $(ready_parity)  ## hold weights of others against where they come from (PARITY=clip for some)
	$(parity_python) scripts/parity/run.py $(PARITY) $(ARGS)

bench: $(ready_bench)  ## measure and record speed and memory (BENCH=loss for some of scripts/bench)
	@for name in $(BENCH); do echo "== $$name"; \
	$(bench_python) scripts/bench/$$name.py --record $(ARGS) || exit; done

lint: $(ready_dev)  ## check style
	$(python) -m ruff check .
	$(python) -m ruff format --check .

format: $(ready_dev)  ## put style in order
	$(python) -m ruff check --fix .
	$(python) -m ruff format .

constraints:  ## refresh constraints/ for PYTHON with the newest versions that requirements allow
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT \
	&& $(PYTHON) -m venv "$$scratch" \
	&& "$$scratch/bin/python" -m pip install --quiet -r requirements-dev.txt \
	&& file=$(call pick_constraints,"$$scratch/bin/python") \
	&& { sed -n '/^#/p' "$$file"; "$$scratch/bin/python" -m pip freeze; } > "$$scratch/new" \
	&& cp "$$scratch/new" "$$file" && echo "wrote $$file"

clean:  ## remove the environments, the built data and caches; runs/ stays
	rm -rf $(VENV) $(PARITY_VENV) $(BENCH_VENV) data/built .pytest_cache .ruff_cache .hypothesis
	find configs data long_vivit tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(python) $(parity_python) $(bench_python):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	|| { found=$$($(PYTHON) --version 2>/dev/null | head -n 1); \
	  echo "error: $(PYTHON) is $${found:-no working Python}; 3.11, 3.12 or 3.13 is needed." \
	    "Name one: make setup PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(@:%/bin/python=%)

# A PYTHON that is named is not the environment's: that is said, since nothing would come of it.
same-python: | $(python)
ifneq ($(origin PYTHON),file)
	@version='import sys; print("%d.%d" % sys.version_info[:2])'; \
	found=$$($(python) -c "$$version"); \
	wanted=$$($(PYTHON) -c "$$version" 2>/dev/null) || wanted='no working Python'; \
	test "$$wanted" = "$$found" || { echo "error: $(VENV) has Python $$found, and" \
	  "PYTHON=$(PYTHON) is $$wanted. Remove $(VENV) to have it made anew, or make another" \
	  "beside it: VENV=.venv-new" >&2; exit 1; }
endif

$(ready): requirements.txt constraints/py311.txt constraints/py312.txt | same-python
	$(python) -m pip install --quiet --disable-pip-version-check \
	  -r requirements.txt -c $(call pick_constraints,$(python))
	@touch $@

$(ready_dev): requirements-dev.txt $(ready)
	$(python) -m pip install --quiet --disable-pip-version-check \
	  -r requirements-dev.txt -c $(call pick_constraints,$(python))
	@touch $@

$(ready_parity): requirements-parity.txt requirements.txt | $(parity_python)
	$(parity_python) -m pip install --quiet --disable-pip-version-check \
	  -r requirements-parity.txt -c $(call pick_constraints,$(parity_python))
	@touch $@

$(ready_bench): requirements-bench.txt requirements.txt | $(bench_python)
	$(bench_python) -m pip install --quiet --disable-pip-version-check \
	  -r requirements-bench.txt -c $(call pick_constraints,$(bench_python))
	@touch $@

$(stories): | $(ready)
	$(python) -m long_vivit.build_data shape_stories
