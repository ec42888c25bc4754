# Each target makes what it needs: .venv with the pinned versions of constraints.txt, then the work. A second call reuses it.
PYTHON ?= python3
BIN := .venv/bin
QUICK := runs/personalize/compare-quick
REMOTE := '<(script|img|iframe)[^>]*src="(https?:)?//|<link[^>]*href="(https?:)?//'

.DEFAULT_GOAL := help

.PHONY: help demo course test units gpu slow lint format bench book pages explorer lab twins figures clean

help:  ## this list
	@echo "make TARGET, where TARGET is one of:"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' Makefile

demo: course  ## the main job: the 2D experiment, the same on the mini model, one page beside each other
	@echo "== personalize compare --quick: five objectives on the mini model (under 4 minutes on two cores)"
	@$(BIN)/personalize compare --quick
	@$(BIN)/personalize report --toy runs/toy2d/course --full $(QUICK) --out runs/report.html
	@$(BIN)/python lectures/explorer/build.py runs/explore.html

course: .venv/ready  ## the 2D experiment alone: runs/toy2d/course
	@echo "== toy2d course: pretrain, fine-tune 184 runs as one stack, measure, draw (about 2 minutes on two quiet cores)"
	@$(BIN)/toy2d course

test: .venv/ready  ## the default test suite
	@echo "== pytest: the default suite, files shared out between the cores; 'make slow' runs the long ones"
	@$(BIN)/python -m pytest -n auto --dist loadfile

PORTABLE := tests/toy2d/core tests/toy2d/test_train.py tests/personalize/pipeline/test_model.py
PLAIN := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=1
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2
units: .venv/ready  ## a quick part of the tests as if on processors with other vector units
	@$(PLAIN) $(BIN)/python -m pytest -n auto --dist loadfile $(PORTABLE)
	@$(AVX2) $(BIN)/python -m pytest -n auto --dist loadfile $(PORTABLE)

slow: .venv/ready  ## every test, the long ones too; then the default suite as if on two other processors
	@$(BIN)/python -m pytest -n auto --dist loadfile -m ""
	@$(PLAIN) $(BIN)/python -m pytest -n auto --dist loadfile
	@$(AVX2) $(BIN)/python -m pytest -n auto --dist loadfile

DEVICE := $(addprefix tests/personalize/,drift evaluate sample pipeline export)
gpu: .venv/ready  ## on a GPU, the tests that compare no bits
	@CUDA_VISIBLE_DEVICES=0 $(BIN)/python -m pytest -n auto --dist loadfile $(DEVICE)

lint: .venv/ready  ## ruff: rules and format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: .venv/ready  ## mend most of what lint finds
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: .venv/ready  ## speed, side by side
	@$(BIN)/toy2d bench

book: course  ## the course as one site, every notebook executed: build/book/lectures/index.html
	@echo "== sphinx: lectures and notebooks, warnings are errors, a cell that raises fails (a few minutes)"
	@$(BIN)/sphinx-build -b html -c lectures -d build/doctrees -W -n --keep-going -q . build/book
	@! grep -rlE $(REMOTE) --include='*.html' build/book  # a page named here would ask the network
	@$(BIN)/python lectures/explorer/build.py build/book/explore.html
	@echo "open build/book/lectures/index.html"

pages: .venv/ready  ## the same pages, executing nothing: with the outputs that `make test` kept
	@BOOK_EXECUTION=off $(BIN)/sphinx-build -E -b html -c lectures -d build/doctrees-pages -W -n --keep-going -q . build/pages
	@! grep -rlE $(REMOTE) --include='*.html' build/pages
	@$(BIN)/python lectures/explorer/build.py build/pages/explore.html

explorer: .venv/ready  ## sliders over the recorded runs, one page: runs/explore.html
	@$(BIN)/python lectures/explorer/build.py runs/explore.html

lab: course  ## JupyterLab, notebook 01 open, the lectures beside it; LAB="--no-browser" and such go to JupyterLab
	@$(BIN)/jupyter-lab --ServerApp.root_dir="$(CURDIR)" --LabApp.news_url=None \
	  --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate $(LAB) notebooks/01_drift.ipynb  # asks the network nothing

twins: .venv/ready  ## after editing a notebook or its .py twin: the newer one wins
	@$(BIN)/jupytext --sync notebooks/[0-9]*.py

figures: course  ## redraw the lectures' figures from the runs (lectures/_static/figures, committed)
	@test -d runs/toy2d/course/verify || $(BIN)/toy2d verify
	@$(BIN)/python lectures/figures.py
	@$(BIN)/python lectures/frontier.py

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "driftlab needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@echo "== making .venv with pinned versions (once; about a minute and 2 GB on disk)"
	@$(PYTHON) -m venv .venv || { echo "no venv module: on Debian or Ubuntu, apt-get install python3-venv"; exit 2; }
	@$(BIN)/pip install --quiet -c constraints.txt torch
	@$(BIN)/pip install --quiet -c constraints.txt -e ".[personalize,dev,book]"
	@touch $@

clean:  ## the environment and caches; runs/ stays
	rm -rf .venv build .pytest_cache .ruff_cache *.egg-info
