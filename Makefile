# The two commands of a fresh machine: `make demo` and `make test`. Needs Python 3.11+ and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# make demo NWB=<folder of NWB files> RECIPE=<yaml>: the same on real recordings
NWB    ?=
RECIPE ?=
DEMO   ?= demo
# processes that share the tests; one more than the cores they were timed on, for many tests wait
JOBS   ?= 3

.PHONY: demo test install clean
demo: $(VENV)/.installed
	$(BIN)/spikeloom demo output="$(DEMO)" $(if $(NWB),nwb="$(NWB)") $(if $(RECIPE),recipe="$(RECIPE)")

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST)

install: $(VENV)/.installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is missing or older than 3.11; install Python 3.11, or give PYTHON=<path of one>"; exit 2; }
	$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "no venv here; on Debian and Ubuntu: apt install python3-venv"; exit 2; }

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing pinned dependencies into $(VENV) (1.9 GB on a machine without GPU, a minute or two) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(DEMO)
