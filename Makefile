# Everything on a fresh machine: `make demo`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
DEMO := .demo
ROWS := predmi expmi rnd gnime cond-mean prototypes-16

.PHONY: demo example test lint stress clean

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/ready-tests: .venv/ready requirements-tests.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-tests.txt
	touch $@

demo: .venv/ready
	$(BIN)/python prepare.py --target digits --xai lrp --gpu 0 --root $(DEMO)
	$(BIN)/python train.py --target digits --xai lrp --gpu 0 --root $(DEMO)
	$(BIN)/python eval.py --target digits --xai lrp --gpu 0 --root $(DEMO) --settings $(ROWS)

example: demo
	cp $(DEMO)/figures/digits_lrp/report.html docs/example-report.html
	cp $(DEMO)/figures/digits_lrp/results.json docs/example-report.json

test: .venv/ready-tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/ready-tests
	$(BIN)/ruff check .
	$(BIN)/mypy

stress: .venv/ready-tests
	$(BIN)/python -m stress

clean:
	rm -rf .venv $(DEMO)
