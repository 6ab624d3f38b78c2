PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUF := $(shell command -v buf || echo build/buf/node_modules/.bin/buf)
REDIS := $(shell command -v redis-server || echo /usr/bin/redis-server)
POSTGRES := $(firstword $(wildcard /usr/lib/postgresql/*/bin/postgres) $(shell command -v postgres) /usr/lib/postgresql/bin/postgres)
PROMETHEUS := $(shell command -v prometheus || echo build/prometheus/usr/bin/prometheus)
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

.NOTPARALLEL:
.PHONY: help setup setup-dev demo protos publish-protos fmt check test attack kills sweep bench bench-peers up

help: ## Shows this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-15s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## Makes .venv with all that running takes

setup-dev: $(VENV)/.installed-dev $(VENV)/.assistant $(REDIS) $(POSTGRES) $(PROMETHEUS) ## Adds what testing and checking take

demo: setup $(VENV)/.assistant ## An assistant answers, with speculation and without
	$(BIN)/paceline demo --python-pair

up: setup ## Keeps draft, verifier and gateway running in this terminal
	$(BIN)/paceline up

test: setup-dev ## Runs all tests, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

sweep: setup-dev ## Tries every causal type that transformers knows, and writes docs/models.md
	cd tests && PYTHONPATH=..:. $(abspath $(BIN))/python -m support.sweep

attack: setup-dev ## Sends 100,000 hostile inputs; COUNT=, SEED=, REPLAY= choose others
	PYTHONPATH=.:tests $(BIN)/python -m attacks $(if $(COUNT),--count $(COUNT)) $(if $(SEED),--seed $(SEED)) $(if $(REPLAY),--replay $(REPLAY))

kills: setup-dev ## Kills, hangs and stops every service under load 1,000 times; COUNT=, SEED= choose others
	PACELINE_ROUNDS=$(or $(COUNT),1000) PACELINE_SEED=$(or $(SEED),1) $(BIN)/python -m pytest tests/e2e/test_killed_fleet.py

bench: setup-dev ## Measures, and writes docs/benchmarks
	$(BIN)/python -m benchmarks

bench-peers: setup-dev build/peers/.installed ## Measures beside OpenVINO GenAI and llama.cpp
	$(BIN)/python -m benchmarks.peers

check: setup-dev $(BUF) ## Lint, types, protos, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd protos && $(abspath $(BUF)) lint && $(abspath $(BUF)) breaking --path paceline/v1 --against published.binpb
	$(BIN)/python -m pytest tests/test_imports.py

fmt: setup-dev ## Formats the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: setup-dev ## Generates the Python stubs
	$(BIN)/python hatch_build.py

publish-protos: $(BUF) ## Makes the public protos what later ones must not break
	cd protos && $(abspath $(BUF)) build --path paceline/v1 --exclude-source-info -o published.binpb

# torch comes first: on its own it is taken as constrained, and nothing after it asks for another build.
$(VENV)/.installed: pyproject.toml constraints.txt hatch_build.py $(shell find protos -name '*.proto')
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[engine]'
	$(BIN)/python -m services.engine.precompile models/draft
	touch $@

$(VENV)/.assistant: $(VENV)/.installed
	$(BIN)/paceline get smollm2
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[engine,dev]'
	touch $@

build/peers/.installed: benchmarks/peers/install.sh
	benchmarks/peers/install.sh build/peers $(PYTHON)
	touch $@

$(REDIS):
	@command -v apt-get > /dev/null || { echo "The tests take a redis-server: install one, then try again." >&2; exit 1; }
	$(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qq redis-server > /dev/null

$(POSTGRES):
	@command -v apt-get > /dev/null || { echo "The tests take a PostgreSQL server: install one, then try again." >&2; exit 1; }
	$(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qq postgresql > /dev/null

# Unpacked, not installed: Debian's package would start a server of its own.
build/prometheus/usr/bin/prometheus:
	@command -v apt-get > /dev/null || { echo "The tests take prometheus and promtool: install them, then try again." >&2; exit 1; }
	$(SUDO) apt-get update -qq
	mkdir -p build/prometheus && cd build/prometheus && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb .

build/buf/node_modules/.bin/buf:
	npm install --silent --no-fund --no-audit --prefix build/buf @bufbuild/buf@1.75.0
