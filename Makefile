PYTHON ?= python3.11
BIN := .venv/bin
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder # long tests are alone in their files: not last
PROTO_OUT := .

.PHONY: setup demo docs picture stack stack-stop test test-all test-rest test-stack check proto lock clean

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

docs: .venv/docs  ## the documentation as a site in build/docs; fails on a broken link
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/docs/index.html"

.venv/docs: .venv/installed
	$(BIN)/pip install --quiet --progress-bar off --constraint constraints.txt --editable '.[docs]'
	@touch $@

picture: reports/whisper-nano-rknn-auto/report.html  ## that report's first screen for README.md, by headless chromium
	chromium --headless=new --no-sandbox --disable-gpu --hide-scrollbars --lang=en-GB --window-size=1100,770 \
	    --screenshot=docs/pictures/report.png file://$(CURDIR)/$<

reports/whisper-nano-rknn-auto/report.html:
	@echo "$@ does not exist: run \`make demo\`, which writes it"; exit 1

stack: setup  ## Prefect server, database, worker and board from native packages, until Ctrl-C (docs/nightly.md)
	@$(BIN)/nightjar stack up

stack-stop: setup  ## end it from another terminal
	@$(BIN)/nightjar stack down

test: setup  ## units, conformance, and ports end to end, in parallel; an absent SDK is a skip by its name
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow" $(PYTEST)

test-all: test test-rest test-stack  ## and the rest: faults, kills, servers, browser, nights, every target

test-rest: setup
	$(BIN)/python -m pytest $(PARALLEL) -m slow --ignore=tests/stack $(PYTEST)

test-stack: setup  ## by themselves: there is one stack, at Prefect's port
	$(BIN)/python -m pytest tests/stack $(PYTEST)

check: setup  ## style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

proto: setup  ## the board service's messages, from nightjar/service/service.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=$(PROTO_OUT) --pyi_out=$(PROTO_OUT) nightjar/service/service.proto
	# Boards have older protobuf runtimes than protoc requires. They read proto3 since version 4.
	sed -i '/import runtime_version/d; /^_runtime_version\.Validate/,/^)/d' $(PROTO_OUT)/nightjar/service/service_pb2.py

lock: setup .venv/docs  ## write down the versions in use
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu//' | grep -v '^-e\|@' > constraints.txt

clean:
	rm -rf .venv toolchains artifacts reports
