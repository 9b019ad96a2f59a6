# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo demo-smollm2 test coverage faults invariance check format npu-test bench bench-peers clean

$(STAMP): pyproject.toml constraints.txt $(wildcard requirements/*.txt)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[llm,deepspeed,dev]'
	touch $@

demo: $(STAMP)
	bash tools/demo.sh $(BIN)

demo-smollm2: $(STAMP)
	bash tools/demo_smollm2.sh $(BIN)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

# The same with a trace of the lines that ran, which takes half as long again.
coverage: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --cov=swiftlet --cov-report=term --cov-fail-under=90

# Every engine, number of ranks and accumulation, and every change between them, against one process.
invariance: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/invariance -m "slow or not slow"

# The whole catalogue of faults, hours long; its table goes into docs/reliability.md.
faults: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tools/faults.py --write

NPU_VENV ?= .venv-npu
NPU_BIN := $(abspath $(NPU_VENV)/bin)
NPU_STAMP := $(NPU_VENV)/.installed
SIMULATOR := $(NPU_VENV)/.simulator
SIMULATOR_FILES := $(shell find tests/simulated_npu -type f -not -path '*/build/*' -not -path '*.egg-info/*' -not -name '*.pyc')

# Only torch-npu, what CANN's compiler and torch_npu's public tests ask for and the simulator are in it; all other packages are those of $(VENV), found through packages.pth.
SITE := -c "import sysconfig; print(sysconfig.get_path('purelib'))"
$(NPU_STAMP): $(STAMP) Makefile
	test -x $(NPU_BIN)/python || $(BIN)/python -m venv $(NPU_VENV)
	echo "import site; site.addsitedir('$$($(BIN)/python $(SITE))')" > "$$($(NPU_BIN)/python $(SITE))/packages.pth"
	$(NPU_BIN)/python -m pip install -q -c constraints.txt torch-npu==2.13.0 attrs decorator scipy expecttest einops
	$(NPU_BIN)/python -m pip install -q --no-deps -e .
	touch $@

$(SIMULATOR): $(NPU_STAMP) $(SIMULATOR_FILES)
	$(NPU_BIN)/python -m pip install -q --no-build-isolation --no-deps ./tests/simulated_npu
	touch $@

# torch-npu lives in an environment of its own: without the simulator (NPUSIM=1) it keeps torch from importing.
npu-test: $(SIMULATOR)
	PATH="$(NPU_BIN):$$PATH" NPUSIM=1 NPUSIM_REQUIRED=1 OMP_NUM_THREADS=1 $(NPU_BIN)/python -m pytest -n 2 --dist loadgroup -m "npu_sim and not slow" tests/npu

# What one step, its scales and generation cost on this machine; each result is JSON with its command and date.
BENCH_OUT ?= output/benchmarks
bench: $(STAMP)
	mkdir -p $(BENCH_OUT)
	$(BIN)/python benchmarks/step.py --variants padded padded-gc ours --out $(BENCH_OUT)/step.json
	$(BIN)/python benchmarks/scaling.py --what length batch size --out $(BENCH_OUT)/scaling.json
	$(BIN)/python benchmarks/inference.py --out $(BENCH_OUT)/inference.json

# Installs other tools under .venv-peers, each in an environment of its own, and runs the same fine-tuning in all.
bench-peers: $(STAMP)
	mkdir -p $(BENCH_OUT)
	$(BIN)/python benchmarks/peers.py --out $(BENCH_OUT)/peers.json

check: $(STAMP)
	$(BIN)/ruff format --check src tests tools benchmarks
	$(BIN)/ruff check src tests tools benchmarks
	$(BIN)/mypy src/swiftlet/errors.py src/swiftlet/log.py src/swiftlet/config src/swiftlet/device \
	  src/swiftlet/data src/swiftlet/train src/swiftlet/parallel src/swiftlet/doctor src/swiftlet/cli.py src/swiftlet/launch.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/structure

format: $(STAMP)
	$(BIN)/ruff check --fix src tests tools benchmarks
	$(BIN)/ruff format src tests tools benchmarks

clean:
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
