# make laptop: the environment, then the whole lifecycle on this machine. make test: the tests, offline. make lint.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/installed

.PHONY: laptop test slow lint
.DELETE_ON_ERROR:

laptop: $(DONE)
	@HF_HUB_OFFLINE=1 bash scripts/lifecycle.sh recipes/laptop

test: $(DONE)
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

slow: $(DONE)
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

lint: $(DONE)
	@$(BIN)/python -m ruff check .

# installed once; again when what it is made from changes
$(DONE): requirements.txt requirements-optional.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
		{ echo "make: Python 3.10 to 3.13 is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); make PYTHON=/path/to/python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "make: installing requirements.txt into $(VENV) (minutes, the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt
	@grep -v '^#' requirements-optional.txt | while read -r part; do \
		$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation "$$part" >$(VENV)/optional.log 2>&1 || \
		echo "make: $$part is left out, this platform cannot build it (see $(VENV)/optional.log)"; done
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m crawl2chat.gguf >/dev/null || echo "make: the GGUF converter could not be fetched, releases go without GGUF"
	@touch $@
