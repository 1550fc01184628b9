# Every target does its own set-up: Python >= 3.11 with venv, make and git are all that has to be there.
#   make demo      the tour, four times in real kernels: plain, with the magics, re-run, re-run after an edit
#   make lab       JupyterLab on notebooks/
#   make test      lint, and everything but the slow drills; browser tests in a pytest process of their own
#   make test-all  the slow drills too
#   make bench     against joblib, in alternating rounds
#   make lint      ruff and mypy

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
INSTALLED = $(VENV)/.installed

# IPython warns of another environment that is active in the shell, and warnings are errors.
unexport VIRTUAL_ENV

.PHONY: setup browser demo lab test test-all bench lint

setup: $(INSTALLED)

# pip's installation of a changed pyproject.toml is incremental, so the environment is kept.
$(INSTALLED): pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# The browser tests drive Debian's Chromium. Where it cannot be installed they skip, or fail if CI is set.
browser:
	@if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	    export DEBIAN_FRONTEND=noninteractive; \
	    apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core \
	        </dev/null >/dev/null || echo "Chromium could not be installed; the browser tests will say so." >&2; \
	fi

demo: $(INSTALLED)
	$(RUN) -m notebooks.demo

# JupyterLab refuses to run as root, as in a container, unless it is told that this is meant.
lab: $(INSTALLED)
	$(RUN) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

# Playwright keeps an event loop in the main thread, which other tests of the same process would meet;
# hence two processes, the browser's first so that the suite's closing line is the last.
test: $(INSTALLED) browser
	@status=0; \
	$(RUN) -m ruff check . && $(RUN) -m ruff format --check --quiet . && $(RUN) -m mypy || status=$$?; \
	$(RUN) -m pytest -q -m "browser and not slow" || status=$$?; \
	$(RUN) -m pytest -q -m "not browser and not slow" || status=$$?; \
	exit $$status

test-all: $(INSTALLED) browser
	@status=0; \
	$(RUN) -m pytest -q -m browser || status=$$?; \
	$(RUN) -m pytest -q -m "not browser" || status=$$?; \
	exit $$status

# The headline first: what a user feels. Each part can be run alone, with words that choose its contests.
bench: $(INSTALLED)
	$(RUN) -m benchmarks
	$(RUN) -m benchmarks.cells
	$(RUN) -m benchmarks.loops
	$(RUN) -m benchmarks.engine
	$(RUN) -m benchmarks.storage
	$(RUN) -m benchmarks.digest

lint: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check --quiet .
	$(RUN) -m mypy
