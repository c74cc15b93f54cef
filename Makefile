# Every target makes what it needs: a virtual environment beside this file, with everything installed.
# Another Python: make PYTHON=python3.12 test. CUDA: make EXTRA=gpu demo.
PYTHON ?= python3
EXTRA ?= cpu
VENV ?= .venv

.PHONY: demo test install lint clean

demo: $(VENV)/installed-$(EXTRA)
	$(VENV)/bin/wsseg demo --run-dir runs/demo

test: $(VENV)/installed-$(EXTRA)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m pytest

install: $(VENV)/installed-$(EXTRA)

$(VENV)/installed-$(EXTRA): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable ".[$(EXTRA),test]"
	touch $@

lint: $(VENV)/installed-$(EXTRA)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
