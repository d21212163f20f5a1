# make chat    ask a checkpoint about images: MODEL= (directory or Hub id), IMAGE= (one or several), QUESTION=
# make test    the default test suite
# make compat  every minor version of transformers, and the README's table
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= nano
IMAGE ?=
QUESTION ?=
# Through the environment and unexpanded: quotes and dollars in a question would not survive the command line
override QUESTION := $(value QUESTION)
export MODEL IMAGE QUESTION

.PHONY: chat test test-slow compat lint format nano-score clean

$(VENV)/.runtime: requirements.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo "error: Python 3.10 or newer is needed (PYTHON=python3.11 make ...)"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { echo "error: could not create $(VENV) with $(PYTHON) -m venv (Debian: apt install python3-venv)"; exit 1; }
	@echo "Installing the packages into $(VENV) (once; torch is large)"
	@$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt || { echo "error: the packages could not be installed; is there a network?"; exit 1; }
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	@echo "Installing the test packages into $(VENV) (once)"
	@$(BIN)/pip install -q --disable-pip-version-check -r requirements-dev.txt || { echo "error: the test packages could not be installed; is there a network?"; exit 1; }
	@touch $@

chat: $(VENV)/.runtime
	@$(BIN)/python examples/chat.py --model "$$MODEL" $(if $(IMAGE),--image $$IMAGE) $(if $(QUESTION),--question "$$QUESTION")

test: $(VENV)/.dev
	$(BIN)/python -m pytest tests

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest tests -m "slow or not slow"

compat: $(VENV)/.dev
	$(BIN)/python -m tests.compat --all --write-readme

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(VENV)/.dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

nano-score: $(VENV)/.dev
	$(BIN)/python -m evaluation.nano --model nano --count 500

clean:
	rm -rf .compat .pytest_cache .ruff_cache .hypothesis
