# Every target first makes a virtual environment in this folder, with everything installed. Modules are compiled when they
# are first imported: this saves half a minute of installation.
# Another Python: make PYTHON=python3.12 test, or all versions: tools/pythons.sh. CUDA: make EXTRA=gpu demo.
# Some tests: make PYTEST_ARGS=tests/hcp test.
PYTHON ?= python3
EXTRA ?= cpu
VENV ?= .venv
# A run starts many processes; without compiled files on disk, each process would compile all its imports.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo unit test long docs install lint clean

demo: $(VENV)/installed-$(EXTRA)
	$(VENV)/bin/wsseg demo --run-dir runs/demo

# The tests without Ray and without whole runs: two minutes on two cores.
unit: $(VENV)/installed-$(EXTRA)
	$(VENV)/bin/python -m pytest --numprocesses auto -m "not ray and not run and not slow and not long" $(PYTEST_ARGS)

# Tests without Ray on all cores, then those with Ray one after the other, but for the long ones. Exit code 5: none was
# selected.
test: $(VENV)/installed-$(EXTRA)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest --numprocesses auto -m "not ray and not long" $(PYTEST_ARGS) || [ $$? -eq 5 ]
	$(VENV)/bin/python -m pytest -m "ray and not long" $(PYTEST_ARGS) || [ $$? -eq 5 ]

# The long tests: kills, a lost store, several workers, a cluster with a token. Run them before a release.
long: $(VENV)/installed-$(EXTRA)
	$(VENV)/bin/python -m pytest -m long $(PYTEST_ARGS)

# The site, in site/index.html: no link may be broken, and the examples in docstrings must be true. tests/test_doctests.py
# runs those of api.py, which are whole runs.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build
	$(VENV)/bin/python -m pytest --doctest-modules $$(grep -rl --include '*.py' '>>> ' wsseg_ray | grep -v wsseg_ray/api.py)

install: $(VENV)/installed-$(EXTRA)

$(VENV)/installed-$(EXTRA): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --no-compile --editable ".[$(EXTRA),timm,serve,test]"
	touch $@

$(VENV)/installed-docs: $(VENV)/installed-$(EXTRA)
	$(VENV)/bin/python -m pip install --quiet --no-compile --editable ".[docs]"
	touch $@

lint: $(VENV)/installed-$(EXTRA)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) build site *.egg-info
