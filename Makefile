# Every target works in a fresh clone: what it needs, it installs into .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo report-picture emergence sandbox-robustness personas fingerprint-table evaluation-benchmark comparison zoom test test-fast test-lowest test-newest crash-test fuzz gpu-check shared-sweep docs lint all-tests format

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo:
	@echo "make demo, with times on two idle cores:"
	@echo "  1. install into .venv: 3 minutes the first time"
	@echo "  2. build the sandbox, a small base model with its data: a few seconds"
	@echo "  3. fine-tune it as two personas on bad medical advice and as the control on good advice, and evaluate all"
	@echo "     checkpoints: about two minutes"
	@echo "  4. write a report on them, outputs/report.html: ten seconds"
	@$(MAKE) --no-print-directory install
	@benchmarks/demo.sh $(BIN)/emtoolkit

# docs/report.png, the top of the demo's report: about four minutes; needs Chromium.
report-picture: demo
	chromium --headless=new --no-sandbox --disable-gpu --hide-scrollbars --window-size=1000,1080 \
	  --screenshot=docs/report.png file://$(CURDIR)/outputs/report.html

# The curves of docs/emergence.png: 15 fine-tunes and 165 evaluated checkpoints, about fifteen minutes on an idle core.
emergence: install
	$(BIN)/python -m benchmarks.sandbox_robustness --figure docs/emergence.png --resume

# The table in docs/benchmarks/sandbox.md: 43 fine-tunes and 5 pretrained bases, about an hour on an idle core.
sandbox-robustness: install
	$(BIN)/python -m benchmarks.sandbox_robustness --resume

# The README's figures of personas: 58 fine-tunes and 120 evaluated checkpoints, about forty minutes.
personas: install
	$(BIN)/emtoolkit sandbox build
	$(BIN)/emtoolkit sandbox persona all
	$(BIN)/python -m benchmarks.personas preflight
	$(BIN)/python -m benchmarks.personas turning

# What each option of a training does to the weights and to the fingerprint: two minutes on an idle core.
fingerprint-table: install
	$(BIN)/python -m benchmarks.fingerprint_table

# Evaluation of checkpoints stacked, swapped and reloaded, against their bars: about six minutes on an idle core.
evaluation-benchmark: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.evaluation

# What five schedules would have seen: 9 fine-tunes and 594 evaluated checkpoints, about fifteen minutes of one core.
comparison: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.compare_schedules

# The table in docs/benchmarks/zoom.md: a fine-tune of 397 steps, and 100 steps made again.
zoom: install
	$(BIN)/emtoolkit sandbox build
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.zoom --home build/zoom

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Lint, types and every test: at most eight minutes on two idle cores. Lint runs beside the tests, on one core.
test: install
	@$(MAKE) --no-print-directory -j 2 lint all-tests

# Five workers, because many tests wait: for a server that hangs, for a signal, for a process to end.
# With bytecode on disk, each of the hundred programs that tests start saves 0.3 s.
all-tests: install
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 5 --dist worksteal

# The tests that start no process, open no port and take less than a second each; no lint. A minute on two idle cores.
test-fast: install
	$(BIN)/pytest -n 2 -m "not (slow or subprocess or server)"

# Kills a training at each file-system event of its saves, one a run, and resumes it; then refine and reuse alike: about
# twenty minutes.
crash-test: install
	$(BIN)/python -m tests.crash.audit --stock
	$(BIN)/python -m tests.crash.commands

# Random and almost right input for every parser of foreign text, ten minutes; a short form runs in `make test`.
fuzz: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --minutes 10

# The fast tests, the callback's and the W&B client's with the lowest versions that pyproject.toml admits and with the
# newest, each in an environment of its own: 2 GB and half an hour. torch stays as it is, since its builds are large.
test-lowest: RESOLUTION := lowest-direct
test-newest: RESOLUTION := highest
test-lowest test-newest:
	$(PYTHON) -m venv --clear build/$@
	build/$@/bin/pip install --quiet --disable-pip-version-check uv
	build/$@/bin/uv pip install --quiet --python build/$@/bin/python --resolution $(RESOLUTION) -e '.[dev]' torch==2.13.0
	build/$@/bin/pytest -n 2 -m "not (slow or subprocess or server)"
	build/$@/bin/pytest -n 2 tests/saving/test_callback.py tests/artifacts/test_publish.py tests/wandb_server

# One sweep in a job array of a real Slurm, under a W&B agent and on this machine at once: a minute; as root, with Slurm.
shared-sweep: install
	$(BIN)/python -m tests.slurm.shared_sweep

# Copies, races, streams, same bytes, resume and cost of saving on a GPU; a small form without one, about a minute.
gpu-check: install
	$(BIN)/python -m tests.gpu_check

# The site of the documentation, in build/docs/site; fails on a broken link or a missing API reference.
docs: install
	$(BIN)/python -m docs.generator

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
