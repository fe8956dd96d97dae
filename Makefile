# Needs Python 3.10 or newer and make; the first run installs the rest into .venv.

PYTHON ?= python3
PORT ?= 8003
COMFYUI_PORT ?= 8188
export COMFYUI_PATH ?= $(HOME)/comfy/ComfyUI
# The tests start many Python processes. Without stored bytecode each compiles diffusers and torch again.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
INSTALLED := .venv/.installed
WITH_COMFYUI := .venv/.with-comfyui
BROWSER := .venv/.browser

# One test process more than cores, as tests wait for a ComfyUI or a browser. With two for each core, a run takes as long.
JOBS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
PYTEST = $(BIN)/python -m pytest -q -rs -n $(JOBS) --dist worksteal --durations=10
# All their tests are slow, and to collect them takes each process five seconds for diffusers.
SLOW_FILES := tests/test_benchmark_gpu.py tests/qwen/test_fake_gpu.py

.PHONY: demo check quick test everything coverage lint serve bench gpu gpu-wheels locales contract comfyui browser requirements clean

demo: $(INSTALLED)  ## make the three edits of the README and a contact sheet
	@$(BIN)/python docs/demo.py build/demo

check: $(INSTALLED)  ## style, types, and the quick tests that need neither ComfyUI nor a browser
	@$(MAKE) --no-print-directory --jobs=2 lint quick

quick: $(INSTALLED)
	$(PYTEST) -m "not comfyui and not browser and not slow" $(SLOW_FILES:%=--ignore=%)

test: comfyui browser  ## style, types, and all tests, JOBS at a time, default one more than cores; those in a real ComfyUI where one can be installed
	@$(MAKE) --no-print-directory --jobs=2 lint everything

everything: comfyui browser
	$(PYTEST)

coverage: lint comfyui browser  ## all tests, and the lines that none of them runs; a sixth slower
	$(PYTEST) --cov=artmancer

lint: $(INSTALLED)  ## style and types
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	@# ComfyUI imports the repository as one package. The link gives it a name, whatever its folder's name is.
	@mkdir -p build/types && ln -sfn ../.. build/types/artmancer_pack
	$(BIN)/mypy

serve: comfyui  ## the gateway on 127.0.0.1, PORT=8003, and ComfyUI with the pack, COMFYUI_PORT=8188
	@test -f "$$COMFYUI_PATH/main.py" || { echo "Set COMFYUI_PATH to a ComfyUI and try again."; exit 1; }
	@mkdir -p build/comfyui/custom_nodes build/comfyui/user
	@ln -sfn "$(CURDIR)" build/comfyui/custom_nodes/artmancer
	ARTMANCER_DATA="$${ARTMANCER_DATA:-build/gateway}" $(BIN)/artmancer serve --port $(PORT) \
		--comfyui-url http://127.0.0.1:$(COMFYUI_PORT) --with-comfyui --comfyui-base "$(CURDIR)/build/comfyui" \
		$(if $(shell command -v nvidia-smi),,--cpu)

# Not among them: benchmarks/faults.py, which takes 20 minutes and the right to mount a disk, and benchmarks/balance.py, which
# takes photos that are downloaded.
bench: comfyui  ## print the benchmarks' tables
	$(BIN)/python benchmarks/region.py
	$(BIN)/python benchmarks/registration.py
	$(BIN)/python benchmarks/islands.py
	$(BIN)/python benchmarks/sampler.py
	$(BIN)/python benchmarks/cards.py
	$(BIN)/python benchmarks/masks.py
	$(BIN)/python benchmarks/fill.py
	$(BIN)/python benchmarks/insertion.py
	$(BIN)/python benchmarks/removal.py
	$(BIN)/python benchmarks/profiles.py
	$(BIN)/python benchmarks/batch.py
	$(BIN)/python benchmarks/batch_modal.py
	$(BIN)/python benchmarks/fetch.py
	$(BIN)/python benchmarks/gateway.py
	$(BIN)/python benchmarks/hosting.py

# Not a part of bench: it needs a CUDA GPU. PYTHON has torch, torchvision, transformers and peft, which stay as they are.
gpu:  ## measure the real size on a GPU with PYTHON=python3; GPU_OPTIONS="--seconds 300"
	@test ! -d $(WHEELS) || $(PYTHON) -m pip install --quiet --disable-pip-version-check --no-index --no-deps --upgrade \
		--find-links $(WHEELS) --target build/gpu-packages $(WHEELS)/*.whl
	PYTHONPATH="$(CURDIR)/build/gpu-packages:$(CURDIR)" $(PYTHON) benchmarks/gpu.py $(GPU_OPTIONS)

WHEELS := build/wheels
# The packages of the Qwen editor that torch, torchvision, transformers and peft do not bring. All are plain Python.
GPU_PACKAGES := diffusers importlib-metadata zipp requests urllib3 idna certifi charset-normalizer
MAX_BYTES := 67108864

gpu-wheels:  ## collect what `make gpu` lacks on a machine with Python 3.12 and no internet; 64 MB at most with the code
	@rm -rf $(WHEELS)
	@$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
		--implementation py --abi none --platform any --constraint requirements-dev.txt --dest $(WHEELS) $(GPU_PACKAGES)
	@size=$$({ git ls-files -z; printf '%s\0' $(WHEELS)/*; } | xargs -0 cat | wc -c); \
		echo "$(WHEELS): $$(cat $(WHEELS)/* | wc -c) bytes; with the code: $$size bytes, at most $(MAX_BYTES)"; \
		test $$size -le $(MAX_BYTES)

locales: comfyui  ## write the English texts from the nodes' schemas
	$(BIN)/python docs/locales.py

contract: comfyui  ## record the names, types and defaults of the HTTP API and the nodes
	PYTHONPATH=tests $(BIN)/python -m support.contract

COMPILE := $(BIN)/uv pip compile --upgrade --quiet --no-header --no-annotate

requirements: comfyui  ## pin the packages of development and of hosting to their newest releases
	$(COMPILE) pyproject.toml --group dev --extra gateway --universal --python-version 3.10 -o requirements-dev.txt
	echo comfy-cli | $(COMPILE) pyproject.toml - "$$COMFYUI_PATH/requirements.txt" \
		--extra gateway --extra fastsam --extra rembg --constraints requirements-dev.txt \
		--python-version 3.12 --python-platform x86_64-unknown-linux-gnu -o artmancer/hosting/requirements.txt

build:
	@mkdir -p build

clean:
	rm -rf .venv build dist *.egg-info

$(INSTALLED): requirements-dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) -r requirements-dev.txt
	$(UV) --no-deps --editable .
	@touch $@

# Where there is no ComfyUI and none can be installed, its tests are skipped.
comfyui: $(INSTALLED) | build
	@test -f "$$COMFYUI_PATH/main.py" || { \
		echo "No ComfyUI in $$COMFYUI_PATH: trying to install one there with comfy-cli."; \
		DO_NOT_TRACK=1 $(BIN)/uv tool run --quiet --from comfy-cli comfy --skip-prompt --workspace "$$COMFYUI_PATH" \
			install --cpu --skip-manager --skip-torch-or-directml --skip-requirement >build/comfy-cli.log 2>&1 </dev/null \
			|| echo "ComfyUI could not be installed; build/comfy-cli.log says why."; }
	@test ! -f "$$COMFYUI_PATH/requirements.txt" || $(MAKE) --no-print-directory $(WITH_COMFYUI)

$(WITH_COMFYUI): $(INSTALLED) $(wildcard $(COMFYUI_PATH)/requirements.txt)
	$(UV) -r "$$COMFYUI_PATH/requirements.txt" --constraints requirements-dev.txt
	@touch $@

browser: $(INSTALLED) | build
	@command -v chromium chromium-browser google-chrome >/dev/null || test -f $(BROWSER) || { \
		$(BIN)/playwright install chromium >build/playwright.log 2>&1 && touch $(BROWSER) \
			|| echo "No Chromium, and none could be installed; build/playwright.log says why."; }
