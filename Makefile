# Tasks of a developer. `make` alone lists them.

SHELL := /bin/sh
BIN := .venv/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test soak check lint types layers programs collected format bench bench-federated bench-monitoring docs lock clean arm

help:  ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## .venv with every package (hashes checked), Shoal itself, the console's browser files
	@./scripts/setup.sh

demo: setup  ## the demo on this machine: broker, controller, six agents (ARGS=--exit to end by itself)
	@$(BIN)/shoal demo $(ARGS)

test: setup  ## lint, types, contracts, then every test; real brokers and a real browser from apt
	@$(MAKE) --no-print-directory -j --output-sync programs lint types layers collected
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

soak: setup  ## power cuts at every point with every disk, 500 kills of a real agent, 1000 swaps, rounds and downloads of real processes: an hour
	@SHOAL_SOAK=1 $(BIN)/python -m pytest -n 2 -s tests/scenario/update/test_power_cuts.py \
		tests/scenario/offline/test_air_gap.py tests/scenario/peers/test_power_cuts.py \
		tests/adapters/update/test_kills.py tests/adapters/serving/test_hot_swap.py \
		tests/federated tests/broker/test_site_download.py tests/examples/test_demo.py tests/unit/test_bench.py $(ARGS)

check: setup  ## lint, types and layer contracts only: seconds
	@$(MAKE) --no-print-directory -j --output-sync lint types layers

lint:
	@$(BIN)/ruff check --quiet --no-cache .
	@$(BIN)/ruff format --quiet --no-cache --check . || { echo "  make format fixes these"; exit 1; }

types:
	@$(BIN)/mypy

layers:
	@$(BIN)/lint-imports --no-logo

# Once, beside the type checker: each process of pytest would compile all libraries for itself.
collected:
	@$(BIN)/python -m pytest --collect-only -qq > /dev/null

programs:
	@./scripts/apt.sh mosquitto chromium prometheus

format: setup  ## format and fix the code
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

bench: setup  ## measure; writes bench/*.json and prints tables
	@$(BIN)/python tests/bench $(ARGS)

bench-rollout: setup  ## behaviour gates on simulated fleets: false stops, missed bad releases
	@$(BIN)/python tests/bench rollout $(ARGS)

bench-federated: setup  ## rounds of 10, 50 and 200 devices beside Flower, and twenty agents that learn digits
	@$(BIN)/python tests/bench aggregation federated $(ARGS)
	@SHOAL_SOAK=1 SHOAL_BENCH=bench $(BIN)/python -m pytest -n 0 -s -q tests/federated/test_twenty.py

bench-monitoring: setup  ## drift: false alarms, delays, real machines, cost; hours (SHOAL_BENCH_SHARE=0.1: a tenth)
	@SHOAL_BENCH_SHARE=$${SHOAL_BENCH_SHARE:-1} $(BIN)/python tests/bench monitoring $(ARGS)

docs: setup  ## regenerate the reference parts of docs/: commands, settings, routes
	@$(BIN)/python scripts/reference.py

arm: setup  ## the agent's core on an emulated Raspberry Pi: arm64 Python and wheels under qemu
	@./scripts/arm.sh

lock: setup  ## regenerate requirements/*.txt from pyproject.toml (ARGS=--upgrade for newer versions)
	@./scripts/lock.sh $(ARGS)

clean:  ## remove what setup, tests and builds made
	rm -rf .venv .venv-clients .venv-converters .venv-peers .models .stamps node_modules build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache controller/shoal/controller/web/static/vendor
	find shared agent controller examples tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
