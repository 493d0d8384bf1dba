# `make run` and `make test` are all that a fresh machine needs: they make .venv, install and go.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test check bench clean

run: .venv/installed
	$(BIN)/lens run --simulate

test: .venv/dev
	$(BIN)/python -m tests.bootstrap
	$(BIN)/python -m pytest

check: .venv/dev build/typing/llm_latency_lens
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev
	$(BIN)/python -m pytest benches --benchmark-only --benchmark-columns=median,ops,rounds
	$(BIN)/python benches/compare.py

.venv/bin/python:
	@$(PYTHON) -m venv .venv || { rm -rf .venv; [ "$$(id -u)" = 0 ] || { echo "$(PYTHON) has no venv; as root: apt-get install python3-venv" >&2; exit 1; }; \
		apt-get update && apt-get install -y python3-venv && $(PYTHON) -m venv .venv; }

.venv/installed: pyproject.toml .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/dev: pyproject.toml .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ .venv/installed

# mypy sees each module once, under its import name: a link in an ignored folder, as package-dir maps it at run time.
build/typing/llm_latency_lens:
	mkdir -p $(@D)
	ln -sfn ../.. $@

clean:
	rm -rf .venv build dist *.egg-info
