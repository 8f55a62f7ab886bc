# Palisade. `make demo` and `make test` are all a newcomer needs; `make help` lists the rest.

export CGO_ENABLED ?= 0
# raft-boltdb and memberlist build together only with this tag (docs/architecture.md, Dependencies).
TAGS     := hashicorpmetrics
GO       ?= go
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  := -s -w -X main.version=$(VERSION)
BIN      := bin
GOLANGCI := v2.15.0
DEMO_DIR ?= /var/tmp/palisade-demo

.PHONY: help build package demo demo-down test test-unit test-race test-system soak bench lint web generate fuzz deps clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/palisade (a static binary; needs only Go)
	@mkdir -p $(BIN)
	$(GO) build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $(BIN)/palisade ./cmd/palisade

package: ## build dist/palisade_VERSION_{amd64,arm64}.deb with the list of its libraries (needs only Go)
	@deploy/debian/build.sh

demo: ## bring up three nodes and six guests on this machine, and prove that they block
	@deploy/install-deps.sh netns
	@$(MAKE) --no-print-directory build
	$(BIN)/palisade demo up --state $(DEMO_DIR)

demo-down: ## remove the demo
	$(BIN)/palisade demo down --state $(DEMO_DIR)

deps: ## install the Debian packages that the tests need
	@deploy/install-deps.sh test

test: deps build ## run the whole suite: unit, race, generated files, fleets in namespaces, real QEMU guests
	@test/run.sh

soak: deps build ## 1,000 migrations of light guests and 100 live ones of QEMU guests with faults (SOAK=--help lists the options)
	PALISADE_BINARY=$(CURDIR)/$(BIN)/palisade $(GO) run -tags $(TAGS) ./test/soak/cmd/soak $(SOAK)

bench: build ## measure latency, throughput and scale, as ratios to this disk and to etcd
	@deploy/install-deps.sh bench
	@test/bench.sh --palisade $(BIN)/palisade

lint: ## golangci-lint with the strict configuration, gofmt, generated files
	@test/lint.sh $(GOLANGCI)

web: ## build the web UI into web/dist, which is committed (needs nodejs 18 or newer, and npm)
	cd web/ui && npm ci --no-audit --no-fund && npm run build

generate: ## regenerate the committed generated files (needs protoc)
	$(GO) generate -tags $(TAGS) ./...

fuzz: ## fuzz every target for FUZZTIME (default 1m) each
	@test/fuzz.sh $${FUZZTIME:-1m}

clean: ## remove build results
	rm -rf $(BIN) dist
