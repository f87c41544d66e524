# Two commands do everything on a machine with python3 (3.11 or newer), make and git: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FLOOR := .venv-floor
PORT ?= 8000
SEED ?= 1
# The tests start hundreds of Pythons: what one has compiled, the others need not.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo payments run test test-floor check format bench bench-peers torture mutate screenshots audit strace \
	chromium clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(VENV)/ready ## Watch 200 sign-ups survive a kill -9
	@$(BIN)/python -m examples.demo

payments: $(VENV)/ready ## Watch orders and their callbacks balance, whatever the merchant does
	@$(BIN)/python -m examples.payments

run: $(VENV)/ready ## Serve the sign-up example on http://127.0.0.1:$(PORT)
	@$(BIN)/python -m examples.signup --port $(PORT)

test: $(VENV)/ready strace chromium test-floor ## Run the tests, on the newest FastAPI and on the oldest supported
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --cov --cov-report=

test-floor: $(FLOOR)/ready
	$(FLOOR)/bin/python -m pytest tests/fastapi -q -n 2 --dist loadfile

check: $(VENV)/ready ## Formatting, lint, types, import layers, known weaknesses
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/bandit -q -ll -ii -r durableq -x durableq/torture

format: $(VENV)/ready ## Put the code in its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/ready ## Measure ourselves against the raw disk and FastAPI's own tasks; ALL=1 for the long ones too
	@$(BIN)/python -m benchmarks $(if $(ALL),--all)

bench-peers: $(VENV)/ready ## Measure other queues beside ours, and write docs/benchmarks.md
	$(BIN)/pip install --quiet --disable-pip-version-check --group benchmarks
	@[ "$$(id -u)" != 0 ] || (apt-get update -qq && apt-get install -qq -y redis-server postgresql) >/dev/null 2>&1 || true
	@$(BIN)/python -m benchmarks.peers

torture: $(VENV)/ready strace ## Try for an hour to make it break its promises, on this disk
	DURABLEQ_MODEL_EXAMPLES=10000 DURABLEQ_FUZZ_CASES=50000 $(BIN)/python -m pytest -q --hypothesis-seed=$(SEED) \
		tests/storage/test_model.py tests/fastapi/test_security_fuzz.py & generated=$$!; \
	$(BIN)/python -m durableq torture --full --seed $(SEED) --json docs/torture.json; broken=$$?; \
	wait $$generated && exit $$broken

mutate: $(VENV)/ready ## Put small faults in, and see whether a test notices; GROUP=codec for some only
	$(BIN)/pip install --quiet --disable-pip-version-check --group mutation
	$(BIN)/python -m tests.mutation $(GROUP)

screenshots: $(VENV)/ready chromium ## Take the pictures of the dashboard that the documents show
	$(BIN)/python -m tests.dashboard.screenshots

audit: $(VENV)/ready ## Look up known vulnerabilities of what is installed
	$(BIN)/pip-audit --skip-editable

strace: # Where it is missing and cannot be installed, the checks that need it are skipped, and say so.
	@command -v strace >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq -y strace; } >/dev/null 2>&1 || true

chromium: # Likewise for the dashboard's tests.
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; } \
		>/dev/null 2>&1 || true

clean: ## Remove what the targets above made
	rm -rf $(VENV) $(FLOOR) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable . --group dev
	@touch $@

$(FLOOR)/ready: pyproject.toml
	$(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(FLOOR)/bin/pip install --quiet --disable-pip-version-check --editable . --group floor
	@touch $@
