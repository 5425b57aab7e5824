# What is done with the template itself; `make help` lists it.

PYTHON ?= python3
# Where `make demo` renders a project.
DEMO ?= demo
PORT ?= 8000
# Tests wait, a quarter of their time, for what they started.
JOBS ?= $(shell expr $$(nproc 2>/dev/null || echo 2) + 1)
# Debian and Ubuntu packages with programs that tests run.
SYSTEM_PACKAGES := chromium chromium-driver jq prometheus redis-server
# What benchmarks are run with, beside nghttp2-client.
BENCHMARK_PACKAGES := caddy nginx
# Those that boot the machines of tests/live.
LIVE_PACKAGES := debootstrap systemd-container iproute2 iptables openssh-client nghttp2-client openssl pebble

# Rendered projects expect uv on the PATH.
WITH_TOOLS := PATH="$(CURDIR)/.venv/bin:$$PATH"

.DEFAULT_GOAL := help
.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: install ## Serve the default project from ./demo (DEMO=, PORT=); CHECK=1 tries it out
	@$(WITH_TOOLS) .venv/bin/python -m tools.demo $(if $(filter 1,$(CHECK)),--check,--port $(PORT)) "$(DEMO)"

# One by one, so that no process is left alone with the long ones.
.PHONY: test
test: install packages lint ## Run everything, with all that it needs; with ARGS=, for pytest, no rehearsals
	$(WITH_TOOLS) .venv/bin/pytest --numprocesses $(JOBS) --dist load --maxschedchunk 1 -m "not live" $(ARGS)
	$(if $(ARGS),,@$(MAKE) --no-print-directory live)

# Mostly they wait, so there may be more of them than processors.
# LIVE_IMAGES= names an archive of `docker save`, for machines that can reach no registry.
.PHONY: live
live: install packages ## Rehearse on booted servers, as root; LIVE_ROWS= takes some, LIVE_REQUESTS= loads them longer
	$(WITH_TOOLS) .venv/bin/pytest --numprocesses 5 --dist load --maxschedchunk 1 -m live tests/live

.PHONY: soak
soak: ## The same with 100,000 requests, and on twice as many servers
	$(MAKE) live LIVE_REQUESTS=100000

.PHONY: quick
quick: install ## Run what takes less than a minute
	$(WITH_TOOLS) .venv/bin/pytest --quick --numprocesses $(JOBS) --dist worksteal $(ARGS)

.PHONY: benchmark
benchmark: install packages ## Measure what the generated service costs, and write docs/performance.md
	$(WITH_TOOLS) .venv/bin/python -m benchmarks $(ARGS)

.PHONY: lint
lint: install ## Check style and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/shellcheck tools/*.sh .ci/run

.PHONY: format
format: install ## Mend what ruff can mend
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

.PHONY: pins
pins: install ## Bring all pins in step with both pyproject.toml; what is pinned stays
	$(WITH_TOOLS) .venv/bin/python -m tools.pins

.PHONY: upgrade
upgrade: install ## Pin the newest versions that both pyproject.toml allow
	$(WITH_TOOLS) .venv/bin/python -m tools.pins --upgrade

.PHONY: install
install: .venv/installed ## Make .venv exactly what requirements-dev.txt says

.venv/installed: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
		{ echo 'Python 3.11 to 3.14 is needed, and `$(PYTHON)` is not: make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv >/dev/null || \
		{ tools/packages.sh "$$($(PYTHON) -c 'import sys; print(f"python3.{sys.version_info[1]}-venv")')" && \
		$(PYTHON) -m venv --clear .venv; }
	@sed -n '/^uv==/,/^[^ ]/{/^uv==/p;/^ /p;}' requirements-dev.txt >.venv/uv.txt
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
	@VIRTUAL_ENV=.venv .venv/bin/uv pip sync --quiet --require-hashes requirements-dev.txt
	@touch $@

# Without them the tests that need one are skipped by name; for CI that is not good enough.
.PHONY: packages
packages:
	@tools/packages.sh $(SYSTEM_PACKAGES) $(BENCHMARK_PACKAGES) $(LIVE_PACKAGES) || { test "$$CI" != true && echo 'Tests that need them are skipped.'; }

.PHONY: clean
clean: ## Remove what can be made again
	rm -rf .venv demo .mypy_cache .pytest_cache .ruff_cache
	find benchmarks tests tools -name __pycache__ -prune -exec rm -rf {} +
