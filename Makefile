# make demo: the whole pipeline on real digits, with less training than python train.py. make test: the test suite.
# Each sets itself up first.
PYTHON ?= python3
BIN := .venv/bin
unexport PYTHONDONTWRITEBYTECODE  # else each of the tests' processes compiles all that it imports

.PHONY: demo test test-slow test-integration lint bench setup lock

demo: setup
	$(BIN)/python train.py budget=1500000

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

# uv fills the environment, three times as fast as pip, and pip where uv cannot be had or fails; both check the lock's
# hashes. uv does not read pip's settings: an index, wheels in a folder and certificates are handed to it. Python's own
# names of what is set in the environment go first.
PIP := $(BIN)/pip --disable-pip-version-check --quiet
PIP_SETTING = $$($(BIN)/pip config get global.$(1) 2>/dev/null)
UV_SETTINGS = index="$${PIP_INDEX_URL:-$(call PIP_SETTING,index-url)}"; \
  wheels="$${PIP_FIND_LINKS:-$(call PIP_SETTING,find-links)}"; \
  certificates="$${PIP_CERT:-$(call PIP_SETTING,cert)}"; \
  [ -z "$$index" ] || export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$index}"; \
  [ -z "$$wheels" ] || export UV_FIND_LINKS="$${UV_FIND_LINKS:-$$wheels}"; \
  [ -z "$$certificates" ] || export SSL_CERT_FILE="$${SSL_CERT_FILE:-$$certificates}"

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'fewstep needs Python 3.11 or newer; set PYTHON=')"
	$(PYTHON) -m venv .venv
	@echo "setup: 3.4 GB are downloaded, most of it CUDA for torch, and .venv takes 6.5 GB"
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.lock
	$(UV_SETTINGS); { $(PIP) install --require-hashes -r .venv/uv.lock && \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock; } || \
	  $(PIP) install --no-compile --require-hashes -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

# Versions stay unless pyproject.toml asks for others; `uv pip compile --upgrade` takes the newest.
lock: setup
	$(UV_SETTINGS); $(BIN)/uv pip compile --quiet pyproject.toml --output-file requirements.lock --universal \
	  --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
	  $(foreach extra,launchers search play workspace onnx dev,--extra $(extra))
