# Every target first creates .venv if it is missing. This needs Python >= 3.11.4.

PYTHON ?= python3
BIN := .venv/bin
SNAKEMAKE := $(BIN)/snakemake
LOCK := envs/requirements.lock
export PYTHONPATH := workflow/scripts

.PHONY: install demo unlock quick test test-slurm bench check estimate lock

install: .venv/installed ## install the lock file into .venv

demo: unlock ## run the whole pipeline on small, real images
	$(SNAKEMAKE) --cores 2 --configfile config/demo.yaml

unlock: .venv/installed ## clear the lock of a killed Snakemake, unless another one is running
	@! $(BIN)/python -m optstate.experiment.lock || $(SNAKEMAKE) --unlock

quick: check ## run the checks, and the tests that neither train nor start a process
	$(BIN)/python -m pytest -q -n 2 tests/unit

test: check ## run the checks, and all tests except those of SLURM
	$(BIN)/python -m pytest -n 3 --dist loadgroup --durations 20

test-slurm: .venv/installed ## test on a real SLURM cluster, which it starts on this machine
	$(BIN)/python -m pytest tests/slurm

bench: .venv/installed ## measure the performance; the machine should be idle
	$(SNAKEMAKE) --snakefile benchmarks/Snakefile --cores all --forcerun summarize

estimate: .venv/installed ## estimate jobs, disk space and GPU hours: make estimate CONFIG=config/mine.yaml SECONDS=15
	@test "$(CONFIG)" && test "$(SECONDS)" || \
		{ echo "CONFIG or SECONDS (per epoch) is missing. Example: make estimate CONFIG=config/mine.yaml SECONDS=15" >&2; exit 1; }
	@$(BIN)/python -m optstate.experiment.estimate $(CONFIG) --seconds-per-epoch $(SECONDS)

check: .venv/installed ## check style, types and the structure of the code
	$(BIN)/pre-commit run --all-files --show-diff-on-failure

lock: .venv/installed ## resolve envs/requirements.in into the lock file
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
		--no-emit-index-url --custom-compile-command "make lock" \
		envs/requirements.in --output-file $(LOCK)

# pip installs uv in the locked version, and uv installs the rest of the lock file. Bytecode is
# compiled here, once. Otherwise every job would spend seconds on it.
.venv/installed: $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' || \
		{ echo "Python >= 3.11.4 is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	test -x $(BIN)/uv || { $(PYTHON) -m venv --clear .venv && \
		$(BIN)/python -m pip install --quiet "$$(grep -o '^uv==[^ ;]*' $(LOCK))"; }
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --compile-bytecode $(LOCK)
	touch $@
