# Every target makes what it needs: a virtual environment beside this file, with everything installed. Of what is
# installed Python compiles what it uses, when it uses it: half a minute less than all at once.
# Another Python: make PYTHON=python3.12 test, or all: tools/pythons.sh. CUDA: make EXTRA=gpu demo.
# Some tests: make PYTEST_ARGS=tests/hcp test.
PYTHON ?= python3
EXTRA ?= cpu
VENV ?= .venv
# A run starts many processes; where Python may not keep what it compiled, each compiles all that it imports.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo unit test install lint clean

demo: $(VENV)/installed-$(EXTRA)
	$(VENV)/bin/wsseg demo --run-dir runs/demo

# What needs no Ray, in under a minute.
unit: $(VENV)/installed-$(EXTRA)
	$(VENV)/bin/python -m pytest -m "not ray and not run and not slow" $(PYTEST_ARGS)

test: $(VENV)/installed-$(EXTRA)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

install: $(VENV)/installed-$(EXTRA)

$(VENV)/installed-$(EXTRA): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --no-compile --editable ".[$(EXTRA),test]"
	touch $@

lint: $(VENV)/installed-$(EXTRA)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) build *.egg-info
