# make setup | demo | test | lint.  PYTHON= picks the interpreter, VENV= an environment you have already.
PYTHON ?= python3
VENV ?= .venv
RUN = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(VENV)/bin/python

.PHONY: setup demo test lint
setup: $(VENV)/.mmgslora-runtime

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.mmgslora-runtime: | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --progress-bar off -c constraints.txt 'setuptools<82' wheel
	$(VENV)/bin/python -m pip install --progress-bar off -c constraints.txt -r requirements/mmcv.txt -e .
	touch $@

$(VENV)/.mmgslora-test: $(VENV)/.mmgslora-runtime
	$(VENV)/bin/python -m pip install --progress-bar off -c constraints.txt -r requirements/test.txt
	touch $@

test: $(VENV)/.mmgslora-test
	$(RUN) -m pytest

lint: $(VENV)/.mmgslora-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
