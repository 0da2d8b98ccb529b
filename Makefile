# `make demo` and `make test` set up a fresh clone themselves. They need Python >= 3.11.4.

PYTHON ?= python3
BIN := .venv/bin
SNAKEMAKE := $(BIN)/snakemake
LOCK := envs/requirements.lock
export PYTHONPATH := workflow/scripts

.PHONY: install demo quick test test-slurm bench check estimate lock

install: .venv/installed ## the environment, from the lock file

demo: .venv/installed ## the whole pipeline on small, real images
	@! $(BIN)/python -m optstate.experiment.lock || $(SNAKEMAKE) --unlock
	$(SNAKEMAKE) --cores 2 --configfile config/demo.yaml
	@$(BIN)/python -m optstate.analysis.show results/demo

quick: check ## style, types, and the tests that neither train nor start a process
	$(BIN)/python -m pytest -q -n 2 tests/unit

test: check ## all tests except those of SLURM
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-slurm: .venv/installed ## on a real SLURM cluster that it starts on this machine
	$(BIN)/python -m pytest tests/slurm

bench: .venv/installed ## performance, on a machine that should be idle
	$(SNAKEMAKE) --snakefile benchmarks/Snakefile --cores all --forcerun summarize

estimate: .venv/installed ## jobs, disk, GPU hours: make estimate CONFIG=config/mine.yaml SECONDS=15
	@test "$(CONFIG)" && test "$(SECONDS)" || \
		{ echo "Seconds per epoch? make estimate CONFIG=config/mine.yaml SECONDS=15" >&2; exit 1; }
	@$(BIN)/python -m optstate.experiment.estimate $(CONFIG) --seconds-per-epoch $(SECONDS)

check: .venv/installed ## style, types, and the structure of the code
	$(BIN)/pre-commit run --all-files --show-diff-on-failure

lock: .venv/installed ## resolve envs/requirements.in again
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
		--no-emit-index-url --custom-compile-command "make lock" \
		envs/requirements.in --output-file $(LOCK)

# The lock file names uv itself, which then installs it. Bytecode is compiled here, once:
# otherwise every job would spend seconds on it.
.venv/installed: $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' || \
		{ echo "Python >= 3.11.4 is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	test -x $(BIN)/uv || { $(PYTHON) -m venv --clear .venv && \
		$(BIN)/python -m pip install --quiet "$$(grep -o '^uv==[^ ;]*' $(LOCK))"; }
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --compile-bytecode $(LOCK)
	touch $@
