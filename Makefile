# One virtual environment for everything; `make demo` needs less of it than `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Big wheels are unpacked once; quiet, but errors show.
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

# torch is large: `make demo` does without it.
.PHONY: demo train test test-all check format benchmark clean

demo: $(VENV)/.installed
	$(BIN)/magc-data build --imagery sample-banepa --osm sample-banepa --zoom 17 --out demo/dataset
	$(BIN)/magc-data verify demo/dataset --quiet
	$(BIN)/magc-data preview demo/dataset --out demo/preview.png
	@echo
	@echo "A dataset of real image/map pairs lies in demo/dataset; look at demo/preview.png. Next:"
	@echo "  $(BIN)/magc-data stats demo/dataset"
	@echo "  $(BIN)/magc-data plan  --bbox 85.30,27.66,85.36,27.72 --zoom 17"
	@echo "  $(BIN)/magc-data build --bbox 85.30,27.66,85.36,27.72 --zoom 17 --out kathmandu"

train: $(VENV)/.installed-model
	$(BIN)/magc-data build --imagery sample-banepa --osm sample-banepa --zoom 18 --out demo/banepa18
	$(BIN)/magc-train vae --preset tiny --data demo/banepa18 --out demo/vae
	$(BIN)/magc-train stage1 --data demo/banepa18 --start-from demo/vae --out demo/stage1
	$(BIN)/magc-train stage2 --data demo/banepa18 --start-from demo/stage1 --out demo/stage2
	$(BIN)/magc reconstruct demo/banepa18 --model demo/stage2/model --sampler dpm-solver++ --steps 20 --out demo/reconstructions.png

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 -m "not online and not slow"

# With the paper's full-size networks, every benchmark at its smallest, and every instant that a split can end at.
test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/burn.py
	$(BIN)/python benchmarks/png.py
	$(BIN)/python benchmarks/relabel.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/latent_codec.py --without-peer
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/fuzz_streams.py

clean:
	rm -rf $(VENV) demo build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'magc needs Python 3.11 or newer, this is ' + sys.version)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(PIP) install -e .
	touch $@

$(VENV)/.installed-model: pyproject.toml | $(VENV)/bin/python
	$(PIP) install -e .[model]
	touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(PIP) install -e .[model,dev]
	touch $@ $(VENV)/.installed-model $(VENV)/.installed
