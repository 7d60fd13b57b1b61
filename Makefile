# make app   start the app              make data   fetch and render the training pictures (needs npm)
# make test  run the whole check        make docs   build the site into build/docs
# make clean remove what the checks leave behind (not .venv)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOO_OLD := Python 3.11 to 3.14 is needed. Name one: make PYTHON=python3.11 ...

.PHONY: app test types site data docs clean

app: $(VENV)/.app-stamp
	$(BIN)/python app.py

data: $(VENV)/.app-stamp
	$(BIN)/python -m guda_core groups fetch

test: $(VENV)/.test-stamp
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(MAKE) --no-print-directory --jobs=2 types site
	$(BIN)/python -m pytest

types: $(VENV)/.test-stamp
	$(BIN)/python -m pyright

site: $(VENV)/.test-stamp
	$(BIN)/python -m sphinx -W --keep-going -q docs build/docs

docs: $(VENV)/.test-stamp
	$(BIN)/python -m sphinx -W --keep-going docs build/docs

clean:
	rm -rf .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The stamps are newer than the requirements they stand for, so that a second run installs nothing.
$(VENV)/.app-stamp: requirements.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit("$(TOO_OLD)" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --version || $(BIN)/python -m ensurepip
	$(BIN)/python -m pip install -r requirements.txt
	touch $@

$(VENV)/.test-stamp: requirements-dev.txt $(VENV)/.app-stamp
	$(BIN)/python -m pip install -r requirements.txt -r requirements-dev.txt
	touch $@
