# Two commands matter: `make demo` and `make test`. Each makes .venv on first use and re-uses it after.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' 2>/dev/null)

.PHONY: demo crypten test lint format clean
.DEFAULT_GOAL := demo

# The extension is built in place; the stamp is as new as what it was built from.
$(VENV)/stamp: pyproject.toml setup.py $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'privinfer: error: $(PYTHON) is older than 3.11'; echo 'privinfer: hint: make PYTHON=/path/to/python3.11'; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[torch,onnx,ckks,dicom,genomics,tables,serve,dev]'
	@touch $@

demo: $(VENV)/stamp
	@$(BIN)/privinfer demo $(if $(BACKEND),--backend $(BACKEND)) $(ARGS)

# Not by its own list of requirements, which names a package that no longer exists; docs/crypten.md.
crypten: $(VENV)/stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'omegaconf>=2.1' 'pyyaml>=6'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps crypten==0.4.1
	@$(BIN)/python -c 'from privinfer.backends.crypten.library import load; print("crypten", load().__version__, "works")'

# Quick tests two at a time; the slow ones start processes of their own and keep deadlines, so one after another.
test: $(VENV)/stamp lint
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n 2
	$(BIN)/python -m pytest -m slow
endif

lint: $(VENV)/stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

format: $(VENV)/stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

clean:
	rm -rf $(VENV) build *.egg-info privinfer/*.so
