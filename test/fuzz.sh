#!/usr/bin/env bash
# Runs every fuzz target for the time given (for example 10s). Stops at the first crash and leaves the
# input in testdata/fuzz, where it becomes a test.
set -euo pipefail
cd "$(dirname "$0")/.."
time=$1
grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do
	grep -h '^func Fuzz' "$dir"/*_test.go | sed -E 's/^func (Fuzz[A-Za-z0-9_]*).*/\1/' | sort | while read -r target; do
		echo "fuzz: $dir $target for $time"
		go test -tags hashicorpmetrics -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$dir"
	done
done
