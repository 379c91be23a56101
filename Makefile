# Turnout: everything a developer runs. `make help` lists the targets.

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
IMAGE    ?= turnout:$(VERSION)
FUZZTIME ?= 20s
BENCH    ?= .

LDFLAGS := -s -w -X main.release=$(VERSION)
STATIC  := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)'

.PHONY: help build demo test race test-integration lint fuzz bench image ci clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## compile the static binaries into bin/
	$(STATIC) -o bin/ ./cmd/...

demo: ## three gateways and two broker clusters in one process; Ctrl-C ends it
	$(GO) run ./cmd/turnout-demo $(DEMOFLAGS)

test: ## all tests that need nothing but Go
	CGO_ENABLED=0 $(GO) test ./...

race: ## the same tests with the race detector (needs a C compiler)
	$(GO) test -race ./...

test-integration: build ## real processes: three gateways behind HAProxy before mosquitto (needs both installed)
	$(GO) test -tags integration -count=1 ./test/integration/... ./test/harness/...

lint: ## gofmt, go vet, staticcheck
	@test -z "$$(gofmt -l .)" || { echo "gofmt would change:"; gofmt -l .; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags integration ./test/...
	$(GO) tool staticcheck ./...

fuzz: ## every fuzz target for FUZZTIME each
	@for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    echo "== $$pkg $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x $$pkg || exit 1; \
	  done; \
	done

bench: ## every benchmark; BENCH=regexp chooses
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem ./...

image: build ## container image FROM scratch; needs a docker engine and no registry
	rm -rf build/image && mkdir -p build/image/data build/image/tmp
	cp bin/turnout Dockerfile build/image/
	docker build -t $(IMAGE) build/image

ci: lint race test-integration ## what the gate runs, without installing anything
	$(GO) run ./cmd/turnout-demo --once

clean: ## remove what the targets above made
	rm -rf bin build
