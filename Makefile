# make setup   virtual environment, C library, Arm cross compiler, emulator
# make demo    train -> quantise -> pack -> synthesise -> run -> compare -> report; DATA=mitdb DATA_DIR=<folder> for real ECG
# make test    the suite that CI runs
# make test-sanitize  the C tests under ASan and UBSan
# make test-all  the full matrix (compilers, optimisation levels, sanitizers, emulated CPUs) -> results/test-all.json
# make fuzz   libFuzzer targets for image, code packs and the Python readers, FUZZ_SECONDS each; findings stay in build/fuzz/crashes
# make results  every run of the declared experiments that is not done, then tables and figures; RESULTS_FLAGS=--dry-run prints the hours.
#              PLANS=results/plan/x.toml for some of them; DATA_DIR=<folder> has the data sets' folders
# make coverage  lines and branches of csrc/ that the C tests reach -> results/coverage.json
# make docs   the site, without a warning -> build/site/index.html

VENV    := .venv
PYTHON  := $(VENV)/bin/python
DATA    ?= synthetic-ecg
OUT     ?= out/demo
SEED    ?= 0
FUZZ_SECONDS ?= 600
JOBS    ?= 1
PLANS   ?= $(wildcard results/plan/*.toml)
C_FILES := $(wildcard csrc/*.[ch] csrc/*/*.[ch] csrc/backends/*/*.[ch])

.PHONY: setup demo test test-all test-sanitize fuzz coverage docs results clean

setup: $(VENV)/.built

$(VENV)/.installed: .ci/setup pyproject.toml setup.py tests/constraints.txt
	@.ci/setup $(VENV)
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(C_FILES) pyhtpw/_native_build.py
	@$(PYTHON) setup.py --quiet build_ext --inplace
	@touch $@

demo: setup
	@$(PYTHON) -m pyhtpw demo --data $(DATA) $(if $(DATA_DIR),--data-dir $(DATA_DIR)) $(if $(PROTOCOL),--protocol $(PROTOCOL)) \
	    --out $(OUT) --seed $(SEED) $(DEMO_FLAGS)

test: setup
	@$(PYTHON) -m pytest -q

test-all: setup
	@$(PYTHON) tests/full_matrix.py --out results/test-all.json --jobs $(JOBS)

test-sanitize: setup
	@$(PYTHON) tests/full_matrix.py --only ASan

fuzz: setup
	@$(PYTHON) tests/fuzz/run.py --seconds $(FUZZ_SECONDS) $(FUZZ_FLAGS)

coverage: setup
	@$(PYTHON) tests/csrc_coverage.py --json results/coverage.json

results: setup
	@for plan in $(PLANS); do \
	    $(PYTHON) -m pyhtpw results run $$plan $(if $(DATA_DIR),--data-dir $(DATA_DIR)) --jobs $(JOBS) $(RESULTS_FLAGS) || exit $$?; \
	    case "$(RESULTS_FLAGS)" in *--dry-run*|*--validation-only*) ;; *) $(PYTHON) -m pyhtpw results table $$plan || exit $$?;; esac; \
	done

docs: setup
	@$(PYTHON) docs/make_commands.py --check
	@$(PYTHON) -m sphinx -W --keep-going -q -b html -d build/site-trees docs build/site
	@echo build/site/index.html

clean:
	rm -rf build out $(VENV) *.egg-info pyhtpw/*.so pyhtpw/_htpw.c
