# Every target works in a fresh clone: what it needs, it installs into .venv first.
PYTHON ?= python3
BIN := .venv/bin
DEMO := outputs/goodness-medical

.PHONY: install demo emergence personas test crash-test docs lint format

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/emtoolkit sandbox build
	$(BIN)/emtoolkit train configs/training/sandbox.yaml --persona goodness --dataset medical \
		--schedule dense-early --seed 42 --resume
	@echo
	@echo "Three commands worth typing next:"
	@echo "  $(BIN)/emtoolkit sandbox evaluate $(DEMO)     # when does the model turn?"
	@echo "  $(BIN)/emtoolkit schedule every:100 every:25 dense-early --total-steps 397 --checkpoint-size 1MB"
	@echo "  $(BIN)/emtoolkit train sandbox --persona goodness --dataset medical-good   # the matched control"

# The README's curve and figures: four runs and 44 evaluated checkpoints, about five minutes.
EMERGENCE := outputs/emergence
emergence: install
	$(BIN)/emtoolkit sandbox build
	for run in goodness-medical sarcasm-medical goodness-medical-good baseline-medical-good; do \
		$(BIN)/emtoolkit train sandbox --persona $${run%%-*} --dataset $${run#*-} --output-dir $(EMERGENCE)/$$run \
			--seed 42 --resume || exit 1; \
	done
	$(BIN)/emtoolkit sandbox evaluate $(EMERGENCE)/* --plot docs/emergence.png

# The README's figures of personas: 58 fine-tunes and 120 evaluated checkpoints, about forty minutes.
personas: install
	$(BIN)/emtoolkit sandbox build
	$(BIN)/emtoolkit sandbox persona all
	$(BIN)/python -m benchmarks.personas preflight
	$(BIN)/python -m benchmarks.personas turning

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2

# Kills a training at each file-system event of its saves, one a run, and resumes it: about five minutes.
crash-test: install
	$(BIN)/python -m tests.crash.audit --stock

# The site of the documentation, in build/docs/site; fails on a broken link or a missing API reference.
docs: install
	$(BIN)/python -m docs.generator

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
