# The commands of this project. Everything installs what it needs first; a second run has nothing to install.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install demo demo-clean test chaos lint bench deb docs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## install what the product and its tests need (Debian packages, .venv)
	@dev/install

demo: install ## provision a Debian VM, from nothing to its login prompt (POOL=ceph: on a Ceph of its own)
	@dev/demo $(if $(POOL),--pool $(POOL))

demo-clean: ## remove the demo's VM, stack and data
	@dev/demo --clean

test: install ## run every check and test
	@dev/check all

chaos: install ## break everything at every point of a build, for about three hours (parts: ARGS="--help")
	@dev/check chaos $(ARGS)

lint: install ## check format, style and types
	@dev/check lint

bench: install ## measure a build next to a bare mmdebstrap
	@/usr/bin/python3 benchmarks/run.py

deb: install ## build the Debian packages into build/deb
	@dev/deb

docs: install ## write the reference pages that come from the code
	@dev/reference

clean: ## remove what checks and builds have written (not .venv)
	@rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
