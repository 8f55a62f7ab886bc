#!/usr/bin/env bash
# golangci-lint with the strict configuration. It is built from source by the Go module proxy (the
# version is pinned), so that the result does not depend on what a machine has.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$1
export CGO_ENABLED=0 GOBIN=$PWD/.cache/bin-$version
if [ ! -x "$GOBIN/golangci-lint" ]; then
	echo "lint: building golangci-lint $version (a few minutes, once)"
	go install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$version"
fi
exec "$GOBIN/golangci-lint" run ./...
