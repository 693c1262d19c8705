# `make run` and `make test` are the front door: each builds .venv first when it is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --custom-compile-command "make requirements"

.PHONY: run install test check lint types audit fuzz crashes chaos walk storm fresh slow bench requirements clean

run: install
	@$(BIN)/feedboard serve

install: $(VENV)/local.stamp

test: $(VENV)/dev.stamp
	$(BIN)/pytest -n logical --dist loadfile

# Where no advisories can be asked, it says so; with FEEDBOARD_REQUIRE_AUDIT set, that is a failure.
check: lint types test
	@sh deploy/audit.sh $(BIN)/pip-audit || { [ $$? -eq 2 ] && [ -z "$$FEEDBOARD_REQUIRE_AUDIT" ]; }

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/deptry .

types: $(VENV)/dev.stamp
	$(BIN)/mypy

# Known vulnerabilities of what the service stands on.
audit: $(VENV)/dev.stamp
	sh deploy/audit.sh $(BIN)/pip-audit

# The long form of the API's property tests, and of the fast lane's.
fuzz: $(VENV)/dev.stamp
	FEEDBOARD_FUZZ=1000 $(BIN)/pytest -s tests/test_openapi.py tests/test_fast_reads.py

# The long form of the proof that nothing is lost: kills the service 200 times, and what it needs.
crashes: $(VENV)/dev.stamp
	FEEDBOARD_CRASHES=200 $(BIN)/pytest -s tests/test_crashes.py

# The long form of what goes wrong around the service: each fault for 2 and for 15 seconds.
chaos: $(VENV)/dev.stamp
	FEEDBOARD_CHAOS=2,15 $(BIN)/pytest -s tests/test_chaos.py

# The long form of walking a list of 100 000 feeds while others write.
walk: $(VENV)/dev.stamp
	FEEDBOARD_WALK=100000 $(BIN)/pytest tests/test_walk.py

# The long form of counting after 16 clients did what they liked, 10 000 requests long.
storm: $(VENV)/dev.stamp
	FEEDBOARD_STORM=10000 $(BIN)/pytest -s tests/test_storm.py

# The long form of reading while others write: 200 writes of each.
fresh: $(VENV)/dev.stamp
	FEEDBOARD_FRESH=200 $(BIN)/pytest -s tests/test_fresh_reads.py

# The long form of 500 connections that are slow on purpose, while others are served.
slow: $(VENV)/dev.stamp
	FEEDBOARD_SLOW=500 $(BIN)/pytest -s tests/test_slow.py

bench: $(VENV)/dev.stamp
	$(BIN)/python -m bench.start
	$(BIN)/python -m bench.pictures
	$(BIN)/python -m bench.uploads
	$(BIN)/python -m bench.memory
	$(BIN)/python -m bench.home
	$(BIN)/python -m bench.likes
	$(BIN)/python -m bench.footprint
	$(BIN)/python -m bench.speed --access-log --growth --charts docs
	$(BIN)/python -m bench.workers

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# A stamp is renewed when a requirement file is: the environment always is what the files say.
# What is built here (pyvips, and the project) is built with the pinned setuptools of build.txt; left
# to itself, pip would fetch one that no hash vouches for.
$(VENV)/local.stamp: requirements/build.txt requirements/local.txt pyproject.toml | $(VENV)/bin/python
	$(PIP) --require-hashes -r requirements/build.txt
	$(PIP) --require-hashes --no-build-isolation -r requirements/local.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt $(VENV)/local.stamp
	$(PIP) --require-hashes --no-build-isolation -r requirements/dev.txt
	@touch $@

# Pin anew: the newest versions that pyproject.toml allows, with their hashes.
requirements: | $(VENV)/bin/python
	$(PIP) uv
	$(COMPILE) --upgrade requirements/build.in -o requirements/build.txt
	$(COMPILE) --upgrade pyproject.toml --extra local --group dev -o requirements/dev.txt
	$(COMPILE) pyproject.toml --extra local -c requirements/dev.txt -o requirements/local.txt
	$(COMPILE) pyproject.toml --extra backup -c requirements/dev.txt -o requirements/service.txt

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
