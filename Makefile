# The commands of the README. A new .venv is made with PYTHON (make test PYTHON=python3.12); one that is there is used as it is,
# so `make clean` comes before a change of Python. Nothing but pip uses the network.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help quickstart test test-slow lint bad-input mutants certificates clean
help:
	@echo "make quickstart   train, sample and report in runs/quickstart"
	@echo "make test         run the tests"
	@echo "make test-slow    more of them: other models and samplings"
	@echo "make bad-input    2,000 generated mistakes of users: each is refused in one line"
	@echo "make lint         ruff and mypy"
	@echo "make mutants      does a test notice? Mistakes made one at a time, in a copy of the tree"
	@echo "make certificates every architecture against transformers: certificates/TABLE.md"
	@echo "make clean        remove .venv and the tools' caches (runs/ stays)"

quickstart: .venv/.installed
	$(BIN)/lm train experiments.quickstart --workdir runs/quickstart

test: .venv/.installed-dev
	$(BIN)/python -m pytest

test-slow: .venv/.installed-dev
	$(BIN)/python -m pytest -m slow

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

# 2,000 generated mistakes over verbs, fields, files and manifests
bad-input: .venv/.installed-dev
	$(BIN)/python -m pytest tests/launch/test_bad_input.py --hypothesis-profile=many

mutants: .venv/.installed-dev
	$(BIN)/python -m tests.mutants

# Ours and transformers' side are processes of their own that talk through files in CERTIFICATES.
CERTIFICATES ?= build/certificates
OTHER := .venv-certificates/bin/python
certificates: .venv/.installed .venv-certificates/.installed
	rm -rf $(CERTIFICATES)
	$(OTHER) -m certificates.reference make $(CERTIFICATES)
	$(BIN)/python -m certificates.ours load $(CERTIFICATES)
	$(OTHER) -m certificates.reference check $(CERTIFICATES)
	$(BIN)/python -m certificates.ours table $(CERTIFICATES) certificates/TABLE.md
	$(BIN)/python -m certificates.families docs/families.md
	$(OTHER) -m certificates.mxfp4 make $(CERTIFICATES)/mxfp4
	$(BIN)/python -m certificates.mxfp4 ours $(CERTIFICATES)/mxfp4
	$(OTHER) -m certificates.peft make $(CERTIFICATES)/peft
	$(BIN)/python -m certificates.peft ours $(CERTIFICATES)/peft
	$(OTHER) -m certificates.peft check $(CERTIFICATES)/peft
	$(OTHER) -m certificates.scores make $(CERTIFICATES)/scores
	$(BIN)/python -m certificates.scores ours $(CERTIFICATES)/scores
	$(OTHER) -m certificates.scores check $(CERTIFICATES)/scores
	$(OTHER) -m certificates.labels make $(CERTIFICATES)/labels
	$(BIN)/python -m certificates.labels ours $(CERTIFICATES)/labels
	$(OTHER) -m certificates.labels check $(CERTIFICATES)/labels
	$(OTHER) -m certificates.sentences make $(CERTIFICATES)/sentences
	$(BIN)/python -m certificates.sentences ours $(CERTIFICATES)/sentences
	$(OTHER) -m certificates.sentences check $(CERTIFICATES)/sentences

# The stamps: made last, so that an interrupted install is begun again.
.venv/.installed: requirements.txt constraints.txt setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	  found=$$($(PYTHON) --version 2>&1) || found="not there"; \
	  echo "PYTHON=$(PYTHON) is $$found: Python 3.11, 3.12 or 3.13 is needed, as in: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$$($(PYTHON) --version) cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "installing the pinned requirements into .venv (a few minutes, once)"
	@$(PYTHON) -m venv --clear .venv
	@$(PIP) install --quiet --requirement requirements.txt --constraint constraints.txt setuptools
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv-certificates/.installed: certificates/requirements.txt .venv/.installed
	@$(PYTHON) -m venv --clear .venv-certificates
	@.venv-certificates/bin/python -m pip --disable-pip-version-check install --quiet --requirement certificates/requirements.txt
	@touch $@

.venv/.installed-dev: .venv/.installed requirements-dev.txt
	@$(PIP) install --quiet --requirement requirements-dev.txt --constraint constraints.txt
	@touch $@

clean:
	rm -rf .venv .venv-certificates build dist lm.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
