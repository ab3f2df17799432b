# make demo: the whole pipeline on real digits. make test: the test suite. Each sets itself up first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow test-integration lint bench setup

demo: setup
	$(BIN)/python train.py

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not integration"

test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal -m "slow and not integration"

# A one-machine SLURM, a headless Chromium, kills at random moments; each skipped, with the reason, where it cannot run.
test-integration: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m integration

# What it costs beside plain PyTorch and peers; benchmarks/README.md says what each measures.
bench: setup
	for name in training sampling evaluation scaling limit; do \
	  $(BIN)/python benchmarks/$$name.py --out benchmarks/results/$$name.json || exit 1; \
	done

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

setup: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'fewstep needs Python 3.11 or newer; set PYTHON=')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet --no-compile -r requirements.lock
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	touch $@
