# One virtual environment for everything; `make demo` needs less of it than `make test`, and `make demo-data` least.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Big wheels are unpacked once; quiet, but errors show.
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo demo-data train evaluate test test-all check format benchmark clean

define PAIRS
$(BIN)/magc-data build --imagery sample-banepa --osm sample-banepa --zoom 17 --quiet --out demo/dataset
$(BIN)/magc-data verify demo/dataset --quiet
$(BIN)/magc-data preview demo/dataset --out demo/preview.png
endef

# A dataset; then tiles and a mosaic that the model in the box has never seen, to bytes and, in other processes, back.
TILE := 18_193345_110119
MAPS := demo/geotiff/mosaics/maps.vrt
demo: $(VENV)/.installed-evaluate
	$(PAIRS)
	$(SAMPLE) --bbox 85.5164,27.6314,85.5242,27.6384 --out demo/heldout18
	test -d demo/geotiff || $(BIN)/magc-data export demo/heldout18 --format geotiff --out demo/geotiff
	$(BIN)/magc compress demo/heldout18 --quality 2 --quiet -o demo/streams
	$(BIN)/magc compress demo/geotiff/mosaics/images.vrt --map $(MAPS) --quality 3 --quiet -o demo/scene.magc
	$(BIN)/magc decompress demo/streams/$(TILE).magc --map demo/geotiff/all/maps/$(TILE).tif -o demo/tile.png
	$(BIN)/magc decompress demo/scene.magc --map $(MAPS) --quiet -o demo/scene.tif
	$(BIN)/magc evaluate demo/heldout18 --on tiles --limit 6 --anchor jpeg2000 -c magc,rates=1/2/4/6 -c magc,steps=1,rates=2 \
	  -c jpeg2000,rates=0.02/0.03/0.04/0.055 -c webp,rates=0 --quiet --report demo/report
	@echo
	@echo "demo/dataset             real image/map pairs; look at demo/preview.png"
	@echo "demo/streams             tiles that the model has never seen, one file each; report.csv has their bytes"
	@echo "demo/tile.png            one of them as it comes back; it was demo/geotiff/all/images/$(TILE).tif"
	@echo "demo/scene.tif           all of them as one mosaic, come back of demo/scene.magc, in its place on Earth"
	@echo "demo/report/report.html  the codec in figures and pictures, on a few tiles; make evaluate: more of everything"
	@echo "Next:"
	@echo "  $(BIN)/magc info demo/scene.magc"
	@echo "  $(BIN)/magc decompress demo/scene.magc --map $(MAPS) --window 600 600 400 300 --steps 1 -o demo/part.png"
	@echo "  $(BIN)/magc compress YOUR.tif --osm YOUR.osm.pbf -o YOUR.magc"
	@echo "  $(BIN)/magc-data build --bbox 85.30,27.66,85.36,27.72 --zoom 17 --out kathmandu"

# Without torch, which is large.
demo-data: $(VENV)/.installed
	$(PAIRS)
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

# The model in the box and six standard codecs on ground that the model has never seen: demo/report/report.html.
SAMPLE := $(BIN)/magc-data build --imagery sample-banepa --osm sample-banepa --zoom 18 --quiet
evaluate: $(VENV)/.installed-evaluate
	$(SAMPLE) --bbox 85.5164,27.6314,85.5242,27.6384 --out demo/heldout18
	$(SAMPLE) --bbox 85.50865,27.63183,85.51414,27.63792 --out demo/west18
	$(SAMPLE) --bbox 85.51552,27.62453,85.53474,27.63062 --out demo/south18
	$(BIN)/magc-train segmenter --data demo/west18 --data demo/south18 --out demo/segmenter
	$(BIN)/magc evaluate demo/heldout18 --segmenter demo/segmenter --report demo/report

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

# Python compiles what it imports when it first does: that takes a fifth of compiling all that is installed. It has to
# keep what it compiled, though, or every command compiles all of its libraries anew, for many seconds.
unexport PYTHONDONTWRITEBYTECODE
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --no-compile -e .
	touch $@

$(VENV)/.installed-model: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --no-compile -e .[model]
	touch $@ $(VENV)/.installed

$(VENV)/.installed-evaluate: pyproject.toml | $(VENV)/bin/python
	$(PIP) install --no-compile -e .[model,evaluate]
	touch $@ $(VENV)/.installed-model $(VENV)/.installed

# CompressAI, which learned baselines are made of, asks for NumPy 1 and does not need it.
$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(PIP) install -e .[model,evaluate,dev]
	$(PIP) install --no-deps compressai pytorch-msssim torch-geometric einops
	touch $@ $(VENV)/.installed-evaluate $(VENV)/.installed-model $(VENV)/.installed
