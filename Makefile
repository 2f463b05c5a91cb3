PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: proto setup demo stack stack-stop test check lock clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@echo "setting up .venv (once, a few minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --progress-bar off --constraint constraints.txt --editable '.[dev,service,remote,dask]'
	@touch $@

demo: setup  ## port the shipped model to the RK3588 in Rockchip's simulator, print the verdict, write the report
	@$(BIN)/nightjar toolchain install rknn
	@$(BIN)/nightjar port --model whisper-nano --target rknn --precision auto; code=$$?; \
	    test $$code -le 1 || exit $$code  # a verdict that is not PASS is a result all the same

.PHONY: docs
docs: .venv/docs  ## the documentation as a site in build/docs; fails on a broken link
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/docs/index.html"

.venv/docs: .venv/installed
	$(BIN)/pip install --quiet --progress-bar off --constraint constraints.txt --editable '.[docs]'
	@touch $@

stack: setup  ## Prefect server, database, worker and board from native packages, until Ctrl-C (docs/nightly.md)
	@$(BIN)/nightjar stack up

stack-stop: setup  ## end it from another terminal
	@$(BIN)/nightjar stack down

test: setup  ## everything; what needs an SDK that is not installed is skipped by name
	$(BIN)/python -m pytest $(PYTEST)

check: setup  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

proto: setup  ## the board service's messages, from nightjar/service.proto
	$(BIN)/python -m nightjar.regenerate

lock: setup .venv/docs  ## write down the versions in use
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu//' | grep -v '^-e\|@' > constraints.txt

clean:
	rm -rf .venv toolchains artifacts reports
