# Each target makes what it needs: .venv with the pinned versions of constraints.txt, then the work. A second call reuses it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow lint format bench clean

demo: .venv/ready  ## the main job: the 2D experiment, its report in runs/toy2d/course/report.html
	@echo "== toy2d course: pretrain, fine-tune 69 runs as one stack, measure, draw (about 2 minutes on two quiet cores)"
	@$(BIN)/toy2d course

test: .venv/ready  ## the default test suite
	@echo "== pytest: the default suite; 'make slow' runs the long ones"
	@$(BIN)/python -m pytest

slow: .venv/ready  ## every test, the long ones too
	@$(BIN)/python -m pytest -m "not gpu"

lint: .venv/ready
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: .venv/ready
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: .venv/ready  ## speed, side by side
	@$(BIN)/toy2d bench

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "driftlab needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@echo "== making .venv with pinned versions (once; about a minute and 2 GB on disk)"
	@$(PYTHON) -m venv .venv || { echo "no venv module: on Debian or Ubuntu, apt-get install python3-venv"; exit 2; }
	@$(BIN)/pip install --quiet -c constraints.txt torch
	@$(BIN)/pip install --quiet -c constraints.txt -e ".[personalize,dev]"
	@touch $@

clean:  ## the environment and caches; runs/ stays
	rm -rf .venv build .pytest_cache .ruff_cache *.egg-info
