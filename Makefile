# `make run` and `make test` are all that a fresh machine needs: they make .venv, install and go.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test check bench clean

run: .venv/installed
	$(BIN)/lens run --simulate

test: .venv/dev
	$(BIN)/python -m tests.bootstrap
	$(BIN)/python -m pytest

check: .venv/dev build/typing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p llm_latency_lens

bench: .venv/dev
	$(BIN)/python -m pytest benches --benchmark-only --benchmark-columns=median,ops,rounds
	$(BIN)/python benches/compare.py

.venv/bin/python:
	$(PYTHON) -m venv .venv || { apt-get update && apt-get install -y python3-venv && $(PYTHON) -m venv .venv; }

.venv/installed: pyproject.toml .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/dev: pyproject.toml .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ .venv/installed

# mypy sees each module once, under its import name: links in an ignored folder, as package-dir maps them at run time.
build/typing:
	mkdir -p $@/llm_latency_lens
	for room in engine collectors exporters cli; do ln -sfn ../../../$$room $@/llm_latency_lens/$$room; done

clean:
	rm -rf .venv build dist *.egg-info
