#!/usr/bin/env bash
# Builds the load generator for etcd and runs the benchmark against the built binary, as root.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "bench: run as root: it makes network namespaces" >&2; exit 2; }
mkdir -p .cache
(cd test/bench/etcdload && CGO_ENABLED=0 go build -o ../../../.cache/etcdload .)
exec go run -tags hashicorpmetrics ./test/bench --etcdload .cache/etcdload "$@"
