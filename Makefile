# `make demo`, `make check` and `make test` do all the set-up themselves: a Python 3.11 to 3.13 and this folder are enough.

VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/base.stamp
DEV := $(VENV)/dev.stamp
UV ?= uv
# Processes that run the tests.
JOBS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo check test lock clean
.DELETE_ON_ERROR:

help: ## this list
	@echo "Set-up happens by itself, in $(VENV)."
	@sed -n 's/^\([a-z]*\):[^#]*## /  make \1\t/p' Makefile

demo: $(BASE) ## train the quickstart network on the built-in images, evaluate it, draw its curves
	@$(BIN)/python main.py --config=configs/quickstart.py
	@$(BIN)/python main.py --config=configs/quickstart.py --mode=evaluate

check: $(DEV) ## ruff, pyright and the fast tests
	@$(lint)
	@$(PYTEST) -m "not slow"

test: $(DEV) ## ruff, pyright and all tests
	@$(lint)
	@$(PYTEST)

# Without a stamp nobody knows how far an earlier installation came, so the environment is made anew. Each recipe
# takes the stamps away before it changes anything: an interrupted installation leaves none.
$(BASE): requirements.lock setup.py
	@$(new_venv)
	@echo "Installing the packages of requirements.lock into $(VENV) (about a minute with a fast network) ..."
	@$(PIP_INSTALL) -r requirements.lock
	@$(PIP_INSTALL) --no-deps --no-build-isolation --config-settings editable_mode=compat -e .
	@touch $@

$(DEV): requirements.lock requirements-dev.lock requirements-nodeps.lock setup.py
	@$(new_venv)
	@echo "Installing the packages of requirements-dev.lock into $(VENV) (two minutes or more: PyTorch is large) ..."
	@$(PIP_INSTALL) -r requirements-dev.lock
	@$(PIP_INSTALL) --no-deps -r requirements-nodeps.lock
	@$(PIP_INSTALL) --no-deps --no-build-isolation --config-settings editable_mode=compat -e .
	@touch $(BASE) $@

# editable_mode=compat: Python finds the package also from a folder that holds the clone, which has the same name.
define new_venv
if [ -e $(BASE) ]; then rm -f $(BASE) $(DEV); exit; fi; \
for python in python3.13 python3.12 python3.11 python3; do \
  version=$$($$python -c 'import platform; print(platform.python_version())' 2>/dev/null) || continue; \
  found="$$found $$python ($$version)"; \
  case $$version in 3.11.*|3.12.*|3.13.*) ;; *) continue ;; esac; \
  in_range=$$python; \
  $$python -c 'import ensurepip, venv' 2>/dev/null || continue; \
  echo "Making $(VENV) with Python $$version ..."; \
  rm -rf $(VENV); exec $$python -m venv $(VENV); \
done; \
if [ -n "$$in_range" ]; then \
  echo "$$in_range cannot make virtual environments here (no venv or ensurepip): sudo apt install python3-venv" >&2; \
else \
  echo "No Python 3.11, 3.12 or 3.13 on the PATH; found:$${found:- none}. Install one and run make again." >&2; \
fi; exit 1
endef

define lint
$(BIN)/ruff check . && $(BIN)/ruff format --check . && PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
endef

LOCK := $(UV) pip compile --quiet --universal --python-version 3.11 --upgrade --no-header --no-annotate setup.py -
lock: ## pin the newest allowed versions again (needs uv: pip install uv)
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: pip install uv" >&2; exit 1; }
	printf 'jax==0.10.2\nsetuptools>=77.0.3\n' | $(LOCK) --output-file requirements.lock
	printf 'jax==0.10.2\nsetuptools>=77.0.3\n' | $(LOCK) --output-file requirements-dev.lock \
	  --extra dev --constraint requirements.lock

clean: ## remove the environment and caches (runs/ stays)
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
