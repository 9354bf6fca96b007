# poolrt - build, run and test.  `make help` lists what there is.
#
# Every variant (release, test, asan, tsan) is the same build with other flags in another folder:
# build/ itself holds the release, build/test the debug build with its asserts and fault points.

VARIANT ?= release
PREFIX  ?= /usr/local
DESTDIR ?=
PORT ?= 6432
ADMIN_PORT ?= 8080

OUT_release := build
OUT := $(or $(OUT_$(VARIANT)),build/$(VARIANT))
OBJ := $(OUT)/obj
V ?= 0
Q_0 := @
Q := $(Q_$(V))
say = @printf '%-6s %s\n'

# ---- flags: PRT_CFLAGS are the project's, CFLAGS the user's ----
PKGS := libuv libpq libssl libcrypto luajit libmicrohttpd
# asked once, and only when something is compiled
pkg_cflags = $(eval pkg_cflags := $$(shell pkg-config --cflags $(PKGS)))$(pkg_cflags)
pkg_libs = $(eval pkg_libs := $$(shell pkg-config --libs $(PKGS)))$(pkg_libs)

WARN := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
        -Wformat=2 -Wundef -Wvla -Wcast-qual -Wwrite-strings -Wno-unused-parameter
HARDEN := -fstack-protector-strong -fPIC
CFLAGS ?= -O2 -g
VERSION := $(shell sed -n 's/^## \[\([0-9.]*\)\].*/\1/p' CHANGELOG.md 2>/dev/null | head -n 1)
PRT_CFLAGS = -std=c11 -D_GNU_SOURCE -Icore -I$(OUT)/gen $(WARN) $(HARDEN) $(FLAGS_$(VARIANT)) \
             -DPRT_VERSION='"$(or $(VERSION),0.1.0)"'
# linked as one program: calls between files that a query passes cost a tenth of its instructions
FLAGS_release := -D_FORTIFY_SOURCE=2 -flto=auto -fno-semantic-interposition
FLAGS_test := -DPRT_DEBUG
FLAGS_asan := -DPRT_DEBUG -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1
FLAGS_tsan := -DPRT_DEBUG -fsanitize=thread -O1
FLAGS_fuzz := -DPRT_DEBUG -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -O1
CC_tsan := clang
CC_fuzz := clang
ifneq ($(CC_$(VARIANT)),)
  override CC := $(CC_$(VARIANT))
endif
LDFLAGS_release := -Wl,-z,relro,-z,now
LDFLAGS_asan := -fsanitize=address,undefined
LDFLAGS_tsan := -fsanitize=thread
LDFLAGS_fuzz := -fsanitize=fuzzer,address,undefined
PRT_LDFLAGS = $(LDFLAGS_$(VARIANT)) -pthread
LIBS = $(pkg_libs) -lm

# ---- what is built from what ----
ROOMS := base pg pool luahost link proxy sim embed admin
src = $(wildcard core/$(1)/*.c)
objs = $(patsubst core/%.c,$(OBJ)/%.o,$(call src,$(1)))
# the rooms that a test of the room links; the table of layers is in core/README.md
DEPS_base := base
DEPS_pg := base pg
DEPS_pool := base pool
DEPS_luahost := base pool luahost
DEPS_link := base pg link
DEPS_proxy := base pg pool link proxy
DEPS_sim := base pool luahost sim
DEPS_admin := base pg pool luahost link proxy admin

room_objs := $(foreach r,$(ROOMS),$(call objs,$(r)))
main_objs := $(patsubst core/%.c,$(OBJ)/%.o,$(wildcard core/*.c))
lua_srcs := $(wildcard lua/poolrt/*.lua)
embed_obj := $(OBJ)/embedded_lua.o
test_srcs := $(wildcard spec/core/*_test.c)
tests := $(patsubst spec/core/%.c,$(OUT)/spec/%,$(test_srcs))
# load clients of the end-to-end specs: one file each, linked with base and pg
client_srcs := $(wildcard spec/client/*.c)
clients := $(patsubst spec/client/%.c,$(OUT)/spec/client/%,$(client_srcs))
fuzz_srcs := $(wildcard spec/core/*_fuzz.c)
fuzzers := $(patsubst spec/core/%.c,$(OUT)/spec/%,$(fuzz_srcs))

.DEFAULT_GOAL := all
.PHONY: all help run test bench check asan tsan fuzz fmt install uninstall clean deps-build deps-run \
        deps-test deps-check tests fuzzers spec drivers

all: deps-build $(OUT)/poolrt ## build build/poolrt (names missing packages and stops)

$(OBJ)/%.o: core/%.c Makefile
	$(say) CC $<
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(PRT_CFLAGS) $(pkg_cflags) -MMD -MP -c $< -o $@

# lua/poolrt/*.lua ride inside the binary: a daemon needs no files but its configuration
$(OUT)/gen/embedded_lua.S: $(lua_srcs) Makefile
	@mkdir -p $(@D)
	@{ echo '.section .rodata'; echo '.global prt_embedded_lua'; i=0; \
	   for f in $(lua_srcs); do i=$$((i+1)); echo "n$$i: .string \"poolrt.$$(basename $$f .lua)\""; \
	     echo "b$$i: .incbin \"$$f\""; echo "e$$i: .byte 0"; done; \
	   echo '.section .data.rel.ro,"aw"'; echo '.balign 8'; echo 'prt_embedded_lua:'; i=0; \
	   for f in $(lua_srcs); do i=$$((i+1)); echo ".quad n$$i, b$$i, e$$i"; done; echo '.quad 0, 0, 0'; \
	   echo '.section .note.GNU-stack,"",@progbits'; } > $@.new; mv $@.new $@
$(embed_obj): $(OUT)/gen/embedded_lua.S $(lua_srcs)
	@mkdir -p $(@D)
	$(Q)$(CC) -c $< -o $@

$(OUT)/poolrt: $(main_objs) $(room_objs) $(embed_obj)
	$(say) LD $@
	$(Q)$(CC) $(CFLAGS) $(PRT_LDFLAGS) $(LDFLAGS) $^ -o $@ $(LIBS)

# everything with all its symbols, for specs that drive C from Lua
$(OUT)/libprt.so: $(room_objs) $(embed_obj)
	$(say) LD $@
	$(Q)$(CC) $(CFLAGS) $(PRT_LDFLAGS) $(LDFLAGS) -shared $^ -o $@ $(LIBS)

# spec/core/ROOM_subject_test.c is linked with what ROOM may use
.SECONDEXPANSION:
test_room = $(firstword $(subst _, ,$(1)))
test_deps = $(foreach r,$(DEPS_$(call test_room,$(1))),$(call objs,$(r)))
# only what runs Lua carries the embedded sources
test_embed = $(if $(filter luahost,$(DEPS_$(call test_room,$(1)))),$(embed_obj))
$(tests) $(fuzzers): $(OUT)/spec/%: spec/core/%.c $(wildcard spec/core/*.h) Makefile $$(call test_deps,$$*) $$(call test_embed,$$*)
	$(say) CCLD $@
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(PRT_CFLAGS) -Ispec/core $(pkg_cflags) $(PRT_LDFLAGS) $(LDFLAGS) $< \
	  $(filter %.o,$^) -o $@ $(LIBS)
$(clients): $(OUT)/spec/client/%: spec/client/%.c Makefile $(call objs,base) $(call objs,pg)
	$(say) CCLD $@
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(PRT_CFLAGS) $(pkg_cflags) $(PRT_LDFLAGS) $(LDFLAGS) $(filter %.c %.o,$^) -o $@ $(LIBS)
tests: $(tests)
fuzzers: $(fuzzers)

# programs that use poolrt through drivers of other languages, with the packages that they need
drivers := build/drivers
drivers: $(drivers)/Jdbc.class $(drivers)/node_modules/.installed \
         $(patsubst spec/drivers/%,$(drivers)/%,$(wildcard spec/drivers/*.mjs))
$(drivers)/%.class: spec/drivers/%.java
	$(say) JAVAC $@
	@mkdir -p $(@D)
	$(Q)javac -cp /usr/share/java/postgresql.jar -d $(@D) $<
$(drivers)/%.mjs: spec/drivers/%.mjs
	@mkdir -p $(@D)
	@cp $< $@
$(drivers)/node_modules/.installed: spec/drivers/package.json spec/drivers/package-lock.json
	$(say) NPM $(@D)
	@mkdir -p $(drivers) && cp $^ $(drivers)
	$(Q)cd $(drivers) && npm ci --omit=optional --ignore-scripts --no-audit --no-fund --loglevel=error >npm.log 2>&1 || \
	  { cat npm.log >&2; exit 1; }
	@touch $@

-include $(shell find $(OBJ) -name '*.d' 2>/dev/null)

# ---- packages ----
LUAJIT_DEV := $(if $(wildcard /usr/include/luajit-2.1/luajit.h),,libluajit2-5.1-dev)
LUAJIT_BIN := $(if $(wildcard /usr/bin/luajit),,luajit2)
PKGS_build := gcc libc6-dev pkg-config libuv1-dev $(LUAJIT_DEV) libpq-dev libssl-dev libmicrohttpd-dev lua-cjson
PKGS_run := $(PKGS_build) postgresql postgresql-client
PKGS_test := $(PKGS_run) $(LUAJIT_BIN) lua-busted curl openssl
# drivers that specs run; a node with npm and a JDK of the machine's own will do
PKGS_drivers = python3-psycopg libpostgresql-jdbc-java $(NODE) $(JDK)
NODE = $(shell npm --version >/dev/null 2>&1 && \
         node -e 'process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)' 2>/dev/null || echo nodejs npm)
JDK = $(shell javac -version 2>/dev/null | grep -Eq '^javac (1[1-9]|[2-9][0-9])' || echo default-jdk-headless)
PKGS_check := $(PKGS_test) clang clang-tidy clang-format lua-check
PKGS_sanitize := $(PKGS_test) clang libclang-rt-14-dev
PKGS_bench := $(PKGS_run) $(LUAJIT_BIN) pgbouncer strace
missing = for p in $(1); do dpkg-query -W -f='$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || printf '%s ' $$p; done

# $(call install,LIST): names what is missing and installs it, as root or through sudo. PostgreSQL
# comes without a cluster of its own; one that is already there is left alone.
define install
	@need="$$($(call missing,$(1)))"; [ -z "$$need" ] || { \
	  echo "installing: $$need"; root=; [ "$$(id -u)" = 0 ] || root=sudo; \
	  if [ -n "$$root" ] && ! command -v sudo >/dev/null; then \
	    echo "make: run as root, or install sudo, or install these packages yourself: $$need" >&2; exit 1; fi; \
	  case " $$need" in *" postgresql "*) $$root mkdir -p /etc/postgresql-common/createcluster.d && \
	    echo "create_main_cluster = false" | $$root tee /etc/postgresql-common/createcluster.d/poolrt.conf >/dev/null;; esac; \
	  $$root apt-get update -qq && \
	  $$root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$need >/dev/null; }
endef

deps-build:
	@need="$$($(call missing,$(PKGS_build)))"; [ -z "$$need" ] || { \
	  echo "make: missing packages: $$need" >&2; \
	  echo "make: install them (apt-get install $$need), or use 'make run' or 'make test', which do" >&2; exit 1; }
deps-run:
	$(call install,$(PKGS_run))
deps-test:
	$(call install,$(PKGS_test) $(PKGS_drivers))
deps-check:
	$(call install,$(PKGS_check))
deps-sanitize:
	$(call install,$(PKGS_sanitize) $(PKGS_drivers))
deps-bench:
	$(call install,$(PKGS_bench))

# builds with all processors, unless make was told how many
in_parallel = $(if $(filter -j% --jobserver%,$(MAKEFLAGS)),,-j$(shell nproc))

# ---- for people ----
run: deps-run ## install what is missing, build, serve examples/minimal.lua on an embedded PostgreSQL
	@$(MAKE) --no-print-directory all
	@exec env PORT=$(PORT) ADMIN_PORT=$(ADMIN_PORT) build/poolrt examples/minimal.lua

test: deps-test ## install what is missing, build, run every suite, end with "N passed, N failed"
	@$(MAKE) --no-print-directory $(in_parallel) spec VARIANT=test

spec: $(OUT)/poolrt $(OUT)/libprt.so tests $(clients) drivers
	@OUT=$(OUT) sh spec/run.sh $(sort $(tests))

asan: deps-sanitize ## the suites under the address and undefined-behaviour sanitizers
	@$(MAKE) --no-print-directory $(in_parallel) spec VARIANT=asan

tsan: deps-sanitize ## the suites under the thread sanitizer, without specs tagged #guard
	@$(MAKE) --no-print-directory $(in_parallel) spec VARIANT=tsan BUSTED_FLAGS='--exclude-tags=guard'

FUZZ_SECONDS ?= 60
fuzz: deps-sanitize ## every fuzzer for FUZZ_SECONDS (60) each
	@$(MAKE) --no-print-directory $(in_parallel) fuzzers VARIANT=fuzz
	@for f in $(patsubst spec/core/%.c,build/fuzz/spec/%,$(fuzz_srcs)); do mkdir -p $$f.corpus; \
	  $$f -max_total_time=$(FUZZ_SECONDS) -timeout=5 -rss_limit_mb=1024 -artifact_prefix=$$f. $$f.corpus \
	    >$$f.log 2>&1 || { cat $$f.log; exit 1; }; \
	  echo "$${f##*/}: $$(sed -n 's/^Done //p' $$f.log), nothing found"; done

bench: deps-bench ## A/B against PgBouncer (PGBOUNCER=path for another one), a table of medians and ratios
	@$(MAKE) --no-print-directory all
	@$(MAKE) --no-print-directory -C spec/bench

c_files = $(shell git ls-files -co --exclude-standard '*.c' '*.h')
check: deps-check ## warnings of clang, thread roles, clang-tidy, luacheck, formatting
	@$(MAKE) --no-print-directory check-c check-lua check-format check-luajit
# the version is quoted for one shell less
TIDY_CFLAGS = $(filter-out -DPRT_VERSION%,$(PRT_CFLAGS)) -DPRT_VERSION=\"check\"
.PHONY: check-c check-tidy check-lua check-format check-luajit
check-c:
	@for f in $$(git ls-files -co --exclude-standard 'core/*.c'); do \
	  clang -fsyntax-only -Wthread-safety $(PRT_CFLAGS) $(pkg_cflags) $$f || exit 1; done; echo "clang: clean"
	@printf '%s\n' $$(git ls-files -co --exclude-standard 'core/*.c') | \
	  xargs -P "$$(nproc)" -n 4 sh -c 'clang-tidy --quiet "$$@" -- $(TIDY_CFLAGS) $(pkg_cflags) 2>/dev/null' tidy
	@echo "clang-tidy: clean"
check-lua:
	@luacheck -q lua policies examples spec
check-format:
	@clang-format --dry-run --Werror $(c_files) && echo "format: clean"
# Debian has two LuaJITs that exclude each other; the other one's headers are unpacked, not installed
check-luajit:
	@mkdir -p build/luajit-beta && cd build/luajit-beta && \
	  { [ -d usr ] || { apt-get download -qq libluajit-5.1-dev && dpkg-deb -x libluajit-5.1-dev_*.deb .; }; }
	@for f in core/luahost/*.c core/admin/*.c; do \
	  $(CC) -fsyntax-only -Ibuild/luajit-beta/usr/include/luajit-2.1 $(PRT_CFLAGS) $(pkg_cflags) $$f || exit 1; done; \
	  echo "libluajit-5.1-dev: compiles"

fmt: ## format the C sources
	@clang-format -i $(c_files)

install: all ## install to PREFIX (/usr/local), below DESTDIR
	install -D -m 755 build/poolrt $(DESTDIR)$(PREFIX)/bin/poolrt
	@for f in $$(cd policies && find . -name '*.lua'); do \
	  install -D -m 644 policies/$$f $(DESTDIR)$(PREFIX)/share/poolrt/policies/$$f; done

uninstall: ## remove what install put there
	rm -f $(DESTDIR)$(PREFIX)/bin/poolrt
	rm -rf $(DESTDIR)$(PREFIX)/share/poolrt

clean: ## remove build products, but not the data of `make run`
	@find build -mindepth 1 -maxdepth 1 ! -name data -exec rm -rf {} + 2>/dev/null || true

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | sort | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'
