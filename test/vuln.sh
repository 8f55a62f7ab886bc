#!/usr/bin/env bash
# Looks for known vulnerabilities in what the program calls, with govulncheck in the version that
# deploy/debian/tools/go.mod pins. VULNDB names another database than Go's own, for example file:///srv/vulndb.
# Exit codes: 0 none are known; 3 some are; 75 the database can't be reached, so nothing was checked.
set -uo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0
db=${VULNDB:-https://vuln.go.dev}
bin=$PWD/.cache/govulncheck
(cd deploy/debian/tools && go build -o "$bin" golang.org/x/vuln/cmd/govulncheck) || exit 1
out=$("$bin" -db "$db" -tags hashicorpmetrics ./... 2>&1)
code=$?
printf '%s\n' "$out"
case $code in
0 | 3) exit $code ;;
esac
if grep -q 'fetching vulnerabilities: Get "' <<< "$out"; then
	echo "vuln: NOT CHECKED: the database of vulnerabilities at $db can't be reached from here" >&2
	exit 75
fi
exit "$code"
