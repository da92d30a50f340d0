# The two commands of a fresh machine: `make demo` and `make test`. Needs Python 3.11+ and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# make demo NWB=<folder of NWB files> RECIPE=<yaml>: the same on real recordings
NWB    ?=
RECIPE ?=
DEMO   ?= demo

.PHONY: demo test install clean
demo: $(VENV)/.installed
	$(BIN)/spikeloom demo output=$(DEMO) $(if $(NWB),nwb=$(NWB)) $(if $(RECIPE),recipe=$(RECIPE))

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PYTEST)

install: $(VENV)/.installed

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(DEMO)
