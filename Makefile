# Thin targets: each makes .venv when needed, then calls one command that can be typed by hand (CONTRIBUTING.md, Windows).
#   make figures   run every notebook, write results/ and print where to look
#   make lab       open the notebooks in JupyterLab
#   make dashboard the playground as a page, without code
#   make student   copies of the notebooks without solutions, in results/student
#   make test      run all tests, notebooks included
#   make lint      check style; "make format" repairs it
#   make clean     remove what was made, keep .venv

NEW_ENOUGH := 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
  $$p -c $(NEW_ENOUGH) 2>/dev/null && echo $$p && break; done)
VENV := .venv
PY := $(VENV)/bin/python
# The stamp's name holds a checksum of what is to be installed: an edited list is installed, a mere "touch" is not.
STAMP := $(VENV)/installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)

DASHBOARD := $(VENV)/dashboard-$(notdir $(STAMP))

.PHONY: figures lab dashboard student test lint format clean

figures: $(STAMP)
	$(PY) -m srlab figures

lab: $(STAMP)
	$(PY) -m jupyterlab --notebook-dir=notebooks

dashboard: $(DASHBOARD)
	$(PY) -m srlab dashboard

student: $(STAMP)
	$(PY) -m srlab student

test: $(STAMP)
	$(PY) -m pytest

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf results build dist .pytest_cache .ruff_cache
	find srlab tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A folder that was moved has a .venv that points to its old place: made again from nothing.
$(STAMP):
	@python="$(PYTHON)"; if ! "$${python:-false}" -c $(NEW_ENOUGH) 2>/dev/null; then \
	  echo "SR Lab needs Python 3.11 or newer; tried: $${python:-python3.11, python3.12, python3.13, python3, python}."; \
	  echo "Install it, or say where it is: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; fi
	@grep -qsF "$(CURDIR)/$(VENV)" $(VENV)/pyvenv.cfg || rm -rf $(VENV)
	"$(PYTHON)" -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm -f $(VENV)/installed-* && touch $(STAMP)

$(DASHBOARD): $(STAMP)
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.[dashboard]'
	@rm -f $(VENV)/dashboard-* && touch $(DASHBOARD)
