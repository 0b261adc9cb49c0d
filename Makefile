# The one way to do each thing; CI and the README call these targets.
#
#   make demo      build, and move KV cache between two processes, checked byte for byte
#   make bench     how fast kvferry is beside Mooncake, NIXL and plain C, on this machine
#   make bench-npu how fast KV cache moves between host memory and NPUs
#   make bench-gpu how fast GPU memory moves, beside Mooncake, NIXL and plain C
#   make bench-go  what the steps of a transfer cost, each by itself; COUNT=10 measures each ten times
#   make test-npu  the demo, the tests of device memory and the benchmark on this machine's NPUs, and a report of them
#   make test      every test; what the machine does not allow is skipped, and listed at the end
#   make test-aarch64  a good part of the tests and the demo as on aarch64, by emulation, with the wheel of make wheels
#   make test-vllm kvferry and Mooncake under real vLLM servers, without a GPU; REAL=short for two minutes of it
#   make test-sglang the same under SGLang's transfer, and under vllm-ascend's on simulated NPUs
#   make soak      an hour of engines under faults, and whose bytes are where; SECONDS=60 SEED=7 for less, and again
#   make lint      formatters, linters and type checkers, generated files, headers
#   make build     the shared and the static library, and the simulated devices, in build/lib
#   make wheel     the Python wheel for this machine in dist
#   make wheels    the wheels for PyPI in dist, for x86-64 and aarch64
#   make install   library, headers and pkg-config file under PREFIX
#   make changelog CHANGELOG.md, of the files in changelog/
#   make generate  the files that are made from others
#   make generate-kernels  cuda/kernels.ptx, after a change of cuda/kernels.cu or kernels.h
#
# Only Python 3.9 or newer is needed for the demo and the wheel: Go and a C compiler are the machine's where it has
# them, and come from PyPI for the build where it has none.

PYTHON ?= python3
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
COUNT ?= 5

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
HEADERS := $(wildcard capi/include/*.h)
PUBLIC_HEADERS := $(HEADERS) sim/kvferry_sim.h
STRICT := -Wall -Wextra -pedantic -Werror
HEADER_FLAGS := $(STRICT) -fsyntax-only
BENCH_PROGRAMS := $(wildcard bench/*/*.c)
BENCH_FLAGS := -std=c99 -O2 -pthread $(STRICT) -Icapi/include
TYPED := bench python scripts tests setup.py

VENV := .venv
PIP := $(VENV)/bin/pip --disable-pip-version-check
SOURCES := $(shell find ascend capi core cuda internal metaserver tcp sim python scripts \( -name '*.py' -o -name '*.go' -o -name '*.s' -o -name '*.[ch]' -o -name '*.ptx' -o -name '*.map' \))
PACKAGING := setup.py pyproject.toml MANIFEST.in go.mod go.sum

.PHONY: demo bench bench-npu bench-gpu bench-go test test-npu test-gpu test-aarch64 test-vllm test-sglang soak soak-offers lint build \
    wheel wheels install changelog generate generate-kernels clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(VENV)/bin/kvferry demo

# What the benchmark can do without, it goes without: NumPy is only tried to be had. BENCH has options: BENCH=--quick
bench: $(VENV)/installed
	-$(PIP) install --quiet numpy
	$(VENV)/bin/python bench/compare.py $(BENCH)

bench-npu: $(VENV)/installed
	$(VENV)/bin/python bench/heterogeneous.py

# An interpreter with kvferry, and PyTorch if there is to be any: GPU_PYTHON=python3. BENCH has options, as above.
GPU_PYTHON ?= $(VENV)/bin/python

bench-gpu: $(VENV)/installed
	$(GPU_PYTHON) bench/gpu.py $(BENCH)

# benchstat reads what it prints.
bench-go: build/bench/crossing
	go test -run '^$$' -bench . -benchtime 300ms -count $(COUNT) ./core ./tcp/... ./capi
	build/bench/crossing $(COUNT)

test-npu: $(VENV)/installed $(VENV)/test-tools
	$(VENV)/bin/python scripts/test_npu.py

# CHECK has options: CHECK="--only tests --only sanitizer"
test-gpu: $(VENV)/installed $(VENV)/test-tools
	$(GPU_PYTHON) scripts/test_gpu.py $(CHECK)

test: build $(VENV)/installed $(VENV)/test-tools
	scripts/test.sh $(VENV)/bin/python

test-aarch64: $(VENV)/wheel-tools
	$(VENV)/bin/python scripts/test_aarch64.py dist/kvferry-*_aarch64.whl

# Each says what it installs into build/real before it does. REAL=short is the form for CI.
REAL ?= whole

test-vllm: build $(VENV)/installed $(VENV)/test-tools
	$(VENV)/bin/python scripts/real_environment.py vllm
	KVFERRY_REAL=$(REAL) $(VENV)/bin/python -m pytest tests/real/test_vllm.py

test-sglang: build $(VENV)/installed $(VENV)/test-tools
	$(VENV)/bin/python scripts/real_environment.py sglang
	KVFERRY_REAL=$(REAL) $(VENV)/bin/python -m pytest tests/real/test_sglang.py tests/real/test_vllm_ascend.py

SECONDS ?= 3600
SOAK ?= $(if $(SEED),--seed $(SEED))

soak: $(VENV)/installed $(VENV)/test-tools
	cd tests && ../$(VENV)/bin/python -m ownership --seconds $(SECONDS) $(SOAK)

ROUNDS ?= 100000

soak-offers: $(VENV)/installed $(VENV)/test-tools
	cd tests && ../$(VENV)/bin/python -m revocation --rounds $(ROUNDS) $(SOAK)

lint: $(VENV)/lint-tools $(VENV)/test-tools $(VENV)/wheel-tools
	test -z "$$(gofmt -l ascend bench capi core cuda internal metaserver tcp tests | tee /dev/stderr)"
	go vet ./...
	go run $(STATICCHECK) ./...
	$(PYTHON) scripts/check_imports.py
	for header in $(PUBLIC_HEADERS); do \
	    $(CC) -x c -std=c99 $(HEADER_FLAGS) $$header && $(CXX) -x c++ -std=c++11 $(HEADER_FLAGS) $$header || exit 1; \
	done
	for program in $(BENCH_PROGRAMS); do $(CC) $(BENCH_FLAGS) -c -o /dev/null $$program || exit 1; done
	$(VENV)/bin/ruff check $(TYPED)
	$(VENV)/bin/ruff format --check $(TYPED)
	$(VENV)/bin/mypy
	$(VENV)/bin/python scripts/generate_bindings.py --check
	$(VENV)/bin/python scripts/generate_notices.py --check
	$(PYTHON) scripts/generate_manual.py --check
	$(VENV)/bin/python scripts/check_ascendcl.py
	$(VENV)/bin/python scripts/check_simulator.py
	$(VENV)/bin/python scripts/generate_kernels.py --check
	$(VENV)/bin/python scripts/changelog.py --check
	go test -run ^TestConfigurationGuideIsCurrent$$ ./core

build: build/lib/libtransfer_engine.so build/lib/libtransfer_engine.a
build: build/lib/sim/libascendcl.so build/lib/sim/libcuda.so.1

build/lib/libtransfer_engine.so: $(SOURCES) $(PACKAGING)
	$(PYTHON) scripts/build_library.py shared $@
	install -D $@ python/kvferry/_lib/$(@F)

build/lib/libtransfer_engine.a: $(SOURCES) $(PACKAGING)
	$(PYTHON) scripts/build_library.py static $@

build/bench/crossing: bench/c/crossing.c build/lib/libtransfer_engine.so
	install -D build/lib/libtransfer_engine.so $(@D)/libtransfer_engine.so.0
	$(CC) $(BENCH_FLAGS) -o $@ $< $(@D)/libtransfer_engine.so.0 -Wl,-rpath,'$$ORIGIN'

build/lib/sim/libascendcl.so: KIND = npu
build/lib/sim/libcuda.so.1: KIND = cuda
build/lib/sim/libascendcl.so build/lib/sim/libcuda.so.1: $(wildcard sim/*.[ch] sim/*.map) scripts/build_library.py
	$(PYTHON) scripts/build_library.py $(KIND) $@
	install -D $@ python/kvferry/_lib/sim/$(@F)

wheel: $(VENV)/bin/python
	rm -f dist/*.whl
	$(PIP) wheel --no-deps --wheel-dir dist .

wheels: $(VENV)/wheel-tools
	rm -f dist/kvferry-*-manylinux_*.whl
	$(VENV)/bin/python scripts/build_wheels.py dist

# They are empty: build scripts made for Mooncake's static libraries name them.
EMPTY_ARCHIVES := libasio.a libbase.a libmooncake_common.a

install: build
	install -d $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(LIBDIR)/pkgconfig
	install -m 644 $(HEADERS) $(DESTDIR)$(PREFIX)/include
	install -m 755 build/lib/libtransfer_engine.so $(DESTDIR)$(LIBDIR)/libtransfer_engine.so.0
	ln -sf libtransfer_engine.so.0 $(DESTDIR)$(LIBDIR)/libtransfer_engine.so
	install -m 644 build/lib/libtransfer_engine.a $(DESTDIR)$(LIBDIR)
	for archive in $(EMPTY_ARCHIVES); do printf '!<arch>\n' > $(DESTDIR)$(LIBDIR)/$$archive || exit 1; done
	sed -e 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(LIBDIR)|' \
	    -e "s|@VERSION@|$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' python/kvferry/__init__.py)|" \
	    capi/transfer_engine.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/transfer_engine.pc

changelog:
	$(PYTHON) scripts/changelog.py

# What GPUs run. The compiler of GPU code comes from PyPI; nothing else needs it.
generate-kernels: $(VENV)/installed
	$(PIP) install --quiet nvidia-cuda-nvrtc-cu12
	$(VENV)/bin/python scripts/generate_kernels.py

generate: $(VENV)/wheel-tools
	$(PYTHON) scripts/generate_bindings.py
	$(VENV)/bin/python scripts/generate_notices.py
	$(PYTHON) scripts/generate_manual.py
	$(PYTHON) scripts/throughput_chart.py
	go generate ./...

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(SOURCES) $(PACKAGING) | $(VENV)/bin/python
	$(PIP) install .
	touch $@

$(VENV)/%-tools: scripts/%-requirements.txt | $(VENV)/bin/python
	$(PIP) install -r $<
	touch $@

clean:
	rm -rf build dist $(VENV) python/kvferry/_lib python/*.egg-info
