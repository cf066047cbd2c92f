# `make check` is what CI runs. PYTHON and VENV may be given: make check PYTHON=python3.12 VENV=/tmp/venv
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# One thread for each process of tests: on two cores 321 s, where one process of two threads takes 546 and two of them 538.
.PHONY: check soak
check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# What takes too long for CI: fifty rounds of kill -9, 2,000 images on Ray with kills, 50,000 for memory, ten minutes of
# fuzzing.
soak: $(VENV)/.dev
	AIVSREAL_ROUNDS=50 $(BIN)/python -m pytest -s tests/test_results.py -k kill_9
	AIVSREAL_SCALE_FILES=2000 $(BIN)/python -m pytest -s tests/test_scale.py
	$(BIN)/python tests/support/fuzz.py --seconds 600

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet -e '.[dev]'
	touch $@

# The kernel for every NVIDIA GPU since Turing, 90 kB, in the file that is named after its source: needs nvcc 13.0 or later.
# Blackwell's data-centre parts are 10.x, Thor is 11.0; other GPUs take the PTX of 7.5, which the driver compiles.
KERNELS ?= runtime/gpu
ARCHITECTURES := 75 80 86 87 89 90 100 110 120
SOURCE_DIGEST = $(shell sha256sum runtime/gpu/preprocess.cu | cut -c 1-12)

.PHONY: fatbin
fatbin:
	rm -f $(KERNELS)/preprocess-*.fatbin
	nvcc -std=c++17 -fatbin --compress-mode=size --threads 2 -gencode arch=compute_75,code=compute_75 \
	    $(foreach cc,$(ARCHITECTURES),-gencode arch=compute_$(cc),code=sm_$(cc)) \
	    -o $(KERNELS)/preprocess-$(SOURCE_DIGEST).fatbin runtime/gpu/preprocess.cu
