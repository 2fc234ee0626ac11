# Everything from a fresh clone: `make test`, `make demo`, `make demo-sriov`, `make demo-nested`, `make demo-hosts`, `make test-long`, `make test-asan`, `make bench`, `make soak`, `make compat`, `make check`, `make man`, `make dist`, `make clean`.
#
# Each target makes what it needs and is quick when that is there. Nothing is installed outside this folder.
#
# The extension and the compiled modules are built by Meson and put next to their sources, and .venv/bin gets the
# commands as wrappers that run the package in this folder: an edit of a .py file counts at once, but for the few that
# have a .pxd beside them. Those are compiled (COMPILED=no leaves them as they are). Its Python has this folder by a .pth
# file. It is not an editable install, because that of meson-python runs a build whenever the package is imported, and
# server processes that start together would race.
# `pip install .` works too, for use rather than development.

PYTHON ?= python3
CC ?= cc
VENV := .venv
BIN := $(VENV)/bin
EXT := build/ext
ASAN := build/asan
ASAN_TESTS := tests/model/queue tests/model/devices tests/wire/disks tests/wire/hostile tests/wire/networks tests/wire/pci tests/wire/transport
ASAN_ENV = LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0:handle_sigbus=0
COMPILED ?= yes
PYTEST_ARGS ?=
BENCH_ARGS ?=
MINUTES ?= 10

export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONPATH := $(CURDIR)

.PHONY: all demo demo-sriov demo-nested demo-hosts test test-long test-asan bench soak compat check man dist clean venv ext images drivers nested hosts
.DELETE_ON_ERROR:

all: ext

## Run a device with VFs under a QEMU guest and move a VF's state.
demo: ext images
	@echo "demo: running"
	$(BIN)/python -m vfu_demo

## A stock guest enables VFs of its PF, uses them, and disables them.
demo-sriov: ext images
	@echo "demo-sriov: running"
	$(BIN)/python -m vfu_demo sriov

## QEMU in a guest gives VFs to a guest of its own, and migrates it from VF to VF.
demo-nested: ext nested
	@echo "demo-nested: running"
	$(BIN)/python -m vfu_demo nested

## A guest moves between two hosts that share a network only, by ssh.
demo-hosts: ext hosts
	@echo "demo-hosts: running"
	$(BIN)/python -m vfu_demo hosts

## All tests but the long ones, one at a time on each processor. PYTEST_ARGS="tests/model -k ring" narrows them, "-n 0" is for a debugger.
## With COMPILED=no those are skipped that are about what is compiled, so requirements are not held against that run.
test: ext images drivers
	@echo "test: running"
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(PYTEST_ARGS)
	$(if $(PYTEST_ARGS)$(filter no,$(COMPILED)),,$(BIN)/python -m tests.requirements --check --run)

## Those that take a guest ten seconds and more: reboots, other firmware and rings, many moves. Before an issue is called done.
test-long: ext images drivers
	@echo "test-long: running"
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal --length long $(PYTEST_ARGS)

## The model's rings and the wire under AddressSanitizer, in a copy of the tree whose compiled modules are made for it.
test-asan: ext
	@mkdir -p $(ASAN)/build
	@tar --create --exclude=./build --exclude=./.venv --exclude=./.git --exclude='*.so' . | tar --extract --directory $(ASAN)
	@ln -sfn $(CURDIR)/$(VENV) $(ASAN)/$(VENV) && ln -sfn $(CURDIR)/build/cache $(ASAN)/build/cache
	@echo "test-asan: building"
	@$(MAKE) --no-print-directory -C $(ASAN) ext MESON_ARGS="-Db_sanitize=address -Db_lundef=false" \
	  IMPORT_WITH="env $(ASAN_ENV)"
	@echo "test-asan: running"
	cd $(ASAN) && $(ASAN_ENV) PYTHONMALLOC=malloc PYTHONPATH=$(CURDIR)/$(ASAN) $(CURDIR)/$(BIN)/python -m pytest -n auto --maxprocesses 8 \
	  --dist worksteal $(or $(PYTEST_ARGS),$(ASAN_TESTS))

## Measure every speed that the project claims. BENCH_ARGS="mmio-read move-downtime" takes only those.
bench: ext images
	@$(BIN)/ninja -C $(EXT) --quiet bench/mmio-sample bench/vf-load
	@echo "bench: running"
	$(BIN)/python -m bench $(BENCH_ARGS)

## A guest moves to and fro under traffic, while all that takes part is killed at random: make soak MINUTES=60.
soak: ext images
	@echo "soak: running"
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

## All drivers that can be had, also those that take minutes, and what became of them: docs/compatibility.md.
compat: ext images
	@$(BIN)/python -m images compat
	@echo "compat: running"
	$(BIN)/python -m tests.compatibility

## Lint, format, types, layers, the extension's stub, and the tables that are made of tests.
check: ext
	@echo "check: ruff"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "check: mypy"
	$(BIN)/mypy
	@echo "check: layers"
	$(BIN)/lint-imports
	@echo "check: stubs of the extensions"
	$(BIN)/stubtest vfu_server.vfio._vfu vfu_server.vfio.guest_memory vfu_server.vfio.turn_lock \
	  vfu_server.vfio.clock vfu_server.vfio.event vfu_server.vfio.mutex \
	  vfu_server.datapath.datagram_channel vfu_server.datapath.direct_memory vfu_server.datapath.file_store \
	  vfu_server.datapath.loop vfu_server.datapath.stream_channel vfu_server.datapath.tap_channel --ignore-missing-stub
	@echo "check: requirement table"
	$(BIN)/python -m tests.requirements --check
	@echo "check: table of rules for drivers"
	$(BIN)/python -m tests.driver_rules --check

## Man pages and completion of the commands, in build/share as below /usr/share.
man: ext
	$(BIN)/python docs/manual.py build/share

## A source distribution, which builds by itself, and a wheel of it, in dist/.
dist: venv
	$(BIN)/python -m build

## Remove all that was made, the virtual environment and what was downloaded included.
clean:
	@echo "clean: removing build, $(VENV) and the library's source"
	rm -rf build dist $(VENV) subprojects/libvfio-user subprojects/json-c
	find pymodel vfu_server -name '*.so' -delete
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

## The virtual environment with all that building and testing needs.
venv: $(VENV)/.path

# Its Python finds this folder's packages from any folder.
$(VENV)/.path: $(VENV)/.stamp
	@$(BIN)/python -c 'import pathlib, sys, sysconfig; \
	  (pathlib.Path(sysconfig.get_path("purelib")) / "vfu-virtio.pth").write_text(sys.argv[1])' "$(CURDIR)"
	@touch $@

$(VENV)/.stamp: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' || \
	  { echo "$(PYTHON) is not Python 3.11 to 3.14: set PYTHON=python3.x" >&2; exit 1; }
	@echo "venv: installing the Python packages into $(VENV)"
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "Python's venv module is missing: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print(*p["dependencies"], *p["optional-dependencies"]["dev"], sep="\n")' > $(VENV)/requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(VENV)/requirements.txt
	@# Each lets SIGINT through when it has its modules: while Python starts, it would be a traceback.
	@hold='env --block-signal=INT '; $${hold}true 2>/dev/null || hold=; \
	for command in server:vfu_server.__main__ owner:vfu_client.owner.cli migrate:vfu_client.move.cli \
	    qemu:vfu_client.plug.cli boot:vfu_images.boot demo:vfu_demo.__main__ images:vfu_images.__main__; do \
	  script="$(BIN)/vfu-$${command%%:*}"; \
	  printf '#!/bin/sh\nexec %s"%s/python" -m %s "$$@"\n' \
	    "$$hold" "$(CURDIR)/$(BIN)" "$${command#*:}" > "$$script" && chmod +x "$$script" || exit 1; \
	done
	@touch $@

## The extension. Ninja decides what is out of date.
ext: $(VENV)/.path $(EXT)/build.ninja
	@$(BIN)/ninja -C $(EXT) --quiet
	@for old in $$(find pymodel vfu_server -name '*.so'); do \
	  case "$(COMPILED) $$old" in no*/vfio/*) ;; no*) rm "$$old" ;; *) test -e "$(EXT)/$$old" || rm "$$old" ;; esac; \
	done
	@for target in $$(cd $(EXT) && find pymodel vfu_server -name '*.so'); do \
	  case "$(COMPILED) $$target" in no*/vfio/*) ;; no*) continue ;; esac; \
	  cmp -s "$(EXT)/$$target" "$$target" || { \
	    echo "ext: $$target"; \
	    rm -f $(EXT)/.imported; \
	    cp "$(EXT)/$$target" "$$target.new" && mv "$$target.new" "$$target"; \
	  } || exit 1; \
	  touch "$$target"; \
	done
	@# A linker takes an extension that lacks a function; only an import tells.
	@test -e $(EXT)/.imported || $(IMPORT_WITH) $(BIN)/python -c 'import importlib, pathlib; \
	  [importlib.import_module(".".join((*p.parent.parts, p.name.partition(".")[0]))) \
	   for root in ("pymodel", "vfu_server") for p in sorted(pathlib.Path(root).rglob("*.so"))]' || \
	  { echo "ext: what was built can't be imported: please report the last line above, and $(CURDIR)/build/configure.log" >&2; \
	    exit 1; }
	@touch $(EXT)/.imported

$(EXT)/build.ninja: $(VENV)/.stamp subprojects/libvfio-user/.stamp
	@command -v $(CC) >/dev/null && echo '#include <stdio.h>' | $(CC) -E - >/dev/null 2>&1 || \
	  { echo "A C compiler and the C library's headers are missing: apt-get install gcc libc6-dev" >&2; exit 1; }
	@$(BIN)/python -c 'import os, sys, sysconfig; p = sysconfig.get_path("include") + "/Python.h"; \
	  sys.exit(not os.path.exists(p))' || \
	  { echo "Python's headers are missing: apt-get install python3-dev" >&2; exit 1; }
	@echo "ext: configuring"
	@CC="$(CC)" $(BIN)/meson setup $(if $(wildcard $(EXT)/build.ninja),--reconfigure --clearcache) $(MESON_ARGS) $(EXT) \
	  > build/configure.log || { cat build/configure.log; exit 1; }

subprojects/libvfio-user/.stamp: $(VENV)/.stamp $(wildcard subprojects/packagefiles/*/*)
	@mkdir -p build
	@echo "ext: fetching the sources of libvfio-user and json-c"
	@$(BIN)/python -m images libvfio-user
	@touch $@

## QEMU, kernel and initramfs for the guests.
images: $(VENV)/.stamp
	@$(BIN)/python -m images all

## QEMU for ARM, firmware, an older kernel, a module for the usual one and what builds modules (build/images/kbuild).
drivers: images
	@$(BIN)/python -m images drivers

## QEMU, the kernel module and a small guest for a guest, which only demo-nested needs.
nested: $(VENV)/.stamp
	@$(BIN)/python -m images nested

## An SSH server and client where the machine has none, which demo-hosts needs.
hosts: $(VENV)/.stamp
	@$(BIN)/python -m images hosts
