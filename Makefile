# Two commands for a newcomer: `make run` and `make test`.
SWIFT ?= swift
MODEL ?= cluster/models/tandem-stories-5m

.PHONY: safety bench bench-policies bench-engine bench-serving run test setup build release proto format lint fuzz asan-kernels clean help

help:
	@echo "make run      build, start a local cluster on the bundled model, run jobs through it, stop"
	@echo "make test     build and run every test"
	@echo "make safety   10,000 seeds of the fault model on the production cores, one core, some two minutes"
	@echo "make release  build the programs into .build/release"
	@echo "make bench    measure page links, the engine and a local cluster on this machine"
	@echo "make bench-engine    the engine against llama.cpp, row by row (TANDEM_PEER names its programs' folder)"
	@echo "make bench-serving   a local cluster against llama.cpp's server;  ARGS=--quick for a short one of either"
	@echo "make bench-policies  eight live policies (POLICIES=all: every one) on real workers: latencies, shares, isolation, preemption"
	@echo "make proto    regenerate Sources/CWire from proto/tandem.proto"
	@echo "make format   format the sources;  make lint  check the format"
	@echo "make fuzz     run the libFuzzer targets for a minute;  make asan-kernels  kernels under sanitizers"

setup:
	@./ops/setup.sh

release: setup
	@echo "building (a first build takes several minutes; later ones seconds)"
	@$(SWIFT) build -c release --product tandem
	@$(SWIFT) build -c release --product tandem-coordinator
	@$(SWIFT) build -c release --product tandem-prefill
	@$(SWIFT) build -c release --product tandem-decode

run: release
	@.build/release/tandem demo --model $(MODEL)

test: setup
	@./ops/test.sh

proto: setup
	@./proto/regenerate.sh

format:
	@$(SWIFT) format -i -r Sources Tests Package.swift

lint:
	@$(SWIFT) format lint --strict -r Sources Tests Package.swift

safety: setup
	@$(SWIFT) build -c release --product tandem-safety
	@.build/release/tandem-safety $(ARGS)

asan-kernels: setup
	@./ops/asan-kernels.sh

fuzz: setup
	@cd Fuzz && ./run.sh 60

clean:
	@$(SWIFT) package clean

bench: setup
	@$(SWIFT) build -c release --product tandem-measure
	@.build/release/tandem-measure links
	@.build/release/tandem-measure engine --model $(MODEL) --prompt 256
	@./ops/measure-serving.sh $(MODEL)

bench-engine: setup
	@$(SWIFT) build -c release --product tandem-measure
	@$(SWIFT) build -c release --product tandem
	@./ops/bench-engine.py $(ARGS)

bench-serving: release
	@./ops/bench-serving.py $(ARGS)

bench-policies: release
	@./ops/measure-policies.sh $(MODEL)
