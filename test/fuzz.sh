#!/usr/bin/env bash
# Runs every fuzz target for a time (10s) or a number of inputs (20000x). Stops at the first crash and leaves
# the input in testdata/fuzz, where it becomes a test. The suite gives a number: before Go 1.27 a time that ends
# while a worker is busy can fail without any input (go.dev/issue/75804).
set -euo pipefail
cd "$(dirname "$0")/.."
time=$1
grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do
	grep -h '^func Fuzz' "$dir"/*_test.go | sed -E 's/^func (Fuzz[A-Za-z0-9_]*).*/\1/' | sort | while read -r target; do
		echo "fuzz: $dir $target for $time"
		go test -tags hashicorpmetrics -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$dir"
	done
done
