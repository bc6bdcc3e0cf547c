# The exact commands that the README, CI and people use. Each installs what it needs first.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SIZE   ?= full
TESTS  ?= 2
PROTOS := $(wildcard proto/plaudit/v1/*.proto)
WEB    := $(wildcard clients/web/*.* clients/web/.npmrc clients/web/public/* clients/web/src/* clients/web/src/*/*)
PAGE   := clients/plaudit_gateway/page/index.html

# Two at a time: installing, and then lint beside what is still being installed. Those that share a directory wait for
# each other.
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += --jobs=2
endif

.PHONY: up test lint page proto proto-baseline metrics-table dashboards clean

## up: install, then run the whole loop (ARGS="--kafka --servers 2 …")
up: $(VENV)/.run
	@$(MAKE) --no-print-directory page || echo "going on without the web page; everything else works"
	$(BIN)/plaudit up $(ARGS)

## test: install, then lint, types, proto checks and all tests, in two processes (TESTS=0: in one; ARGS="-k name …")
test: lint $(VENV)/.debian $(VENV)/.node
	@$(MAKE) --no-print-directory page
	$(BIN)/python -m pytest -n $(TESTS) --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.dev $(VENV)/.web
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against proto/baseline.binpb

## page: build the web page, which plaudit-gateway serves (needs Node, or takes it from PyPI)
page: $(PAGE)

## proto: compile proto/ (installing does so too)
proto: $(VENV)/.dev
	$(BIN)/python hatch_build.py

## proto-baseline: what `buf breaking` compares with; at a release
proto-baseline: $(VENV)/.dev
	$(BIN)/buf build --exclude-source-info -o proto/baseline.binpb

## metrics-table: write docs/metrics.md anew, from the code
metrics-table: $(VENV)/.dev
	$(BIN)/python -m monitoring.metrics_table

## dashboards: write helm/plaudit/dashboards anew, from the code; docs/metrics.md says who uses what
dashboards: $(VENV)/.dev
	$(BIN)/python -m monitoring.dashboards
	$(BIN)/python -m monitoring.metrics_table

## bench-NAME: run bench/NAME.py (SIZE=small for a minute's worth; hyphens stand for underscores); its last line is one
## JSON object
bench-%: $(VENV)/.dev
	$(BIN)/python bench/$(subst -,_,$*).py --size $(SIZE) $(ARGS)

clean:
	rm -rf $(VENV) proto/plaudit/v1/*_pb2* clients/plaudit_gateway/page clients/web/node_modules

# One install for all programs. The marker is younger than everything that it was made from.
$(VENV)/.run: requirements/run.txt pyproject.toml hatch_build.py $(PROTOS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements/run.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run requirements/dev.txt requirements/s3.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements/dev.txt -r requirements/s3.txt
	touch $@

# The example in docs/clients.md for other languages. Without node its test is skipped, and says so.
$(VENV)/.node: clients/examples/node/package-lock.json $(VENV)/.run
	@if command -v npm > /dev/null; then npm --prefix clients/examples/node ci --silent --ignore-scripts --no-audit --no-fund && touch $@; \
	else echo "not installed: node; the test of the example in Node is skipped"; fi

$(PAGE): $(WEB) | $(VENV)/.run
	$(BIN)/python clients/web/build.py

$(VENV)/.web: $(WEB) $(wildcard clients/web/test/* clients/web/dev/*) | $(VENV)/.run
	$(BIN)/python clients/web/build.py --check
	touch $@

$(VENV)/.debian: requirements/debian.txt $(VENV)/.run
	@missing=; for package in $$(grep -v '^#' $<); do command -v $$package > /dev/null || missing="$$missing $$package"; done; \
	if [ -z "$$missing" ]; then touch $@; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing > /dev/null && touch $@; \
	else echo "not installed:$$missing; the tests that need them are skipped (apt-get install$$missing)"; fi
