#!/usr/bin/env bash
# The whole suite, in stages, as root. A stage that fails does not stop the ones after it; the end says
# what passed. Nothing is skipped: what a stage needs, deploy/install-deps.sh has installed.
#
#   test/run.sh            all stages
#   test/run.sh fleet      one of: lint generated web unit race kernel fuzz fleet browser qemu package vuln
#
# A stage that can't do its work here, because something outside is out of reach, is counted as skipped, aloud.
set -uo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "test: run as root: the suite makes network namespaces and nftables rules" >&2; exit 2; }

# A disk that fills up fails some test in words that do not say so.
for dir in . "${TMPDIR:-/tmp}" /var/tmp "$(go env GOCACHE)"; do
	free=$(df --output=avail -BG "$dir" | tail -n 1 | tr -dc 0-9)
	[ "$free" -ge 8 ] || { echo "test: $dir has $free GB free, the suite needs 8 (go clean -cache frees what earlier builds left)" >&2; exit 2; }
done

export PALISADE_BINARY=$PWD/bin/palisade
gotestsum="go run gotest.tools/gotestsum@v1.13.0 --format pkgname --hide-summary=skipped --"
# Packages that make namespaces and change kernels, one after the other; cluster and the whole systems are
# apart, see below. What is in none of these needs no kernel: no package is left out because nobody named it.
kernels="./enforce/nft/... ./enforce/page/... ./deploy/... ./test/matrix"
apart="./cluster/... ./test/... $kernels"
pure=$(go list -tags hashicorpmetrics ./... | grep -vxF "$(go list -tags hashicorpmetrics $apart)") || exit 1
passed=() failed=() skipped=()

stage() { # NAME COMMAND...
	local name=$1 start=$SECONDS
	shift
	[ -z "${only:-}" ] || [ "$only" = "$name" ] || return 0
	printf '\n== %s\n' "$name"
	"$@"
	case $? in
	0) passed+=("$name ($((SECONDS - start)) s)") ;;
	75) skipped+=("$name") ;;
	*) failed+=("$name") ;;
	esac
}

# Of the others only the tests of package cluster are tried again, and said to be: they time elections on real disks,
# and fail when the machine is slower than that. Everything else must pass the first time; a test with
# packets that leaks once has leaked. They mostly wait, so four go on at once, and two with the race detector.
again="${gotestsum% --} --rerun-fails=2 --rerun-fails-max-failures=5 --packages=./cluster/... --"
flags="-tags hashicorpmetrics -count=1"

unit() {
	$gotestsum $flags -timeout 10m $pure ./test/bench && $again $flags -parallel 4 -timeout 10m &&
		$gotestsum -tags hashicorpmetrics,nextformat -count=1 -run 'Format|Readable|CantRead' ./fsm ./cluster
}
race() { (export CGO_ENABLED=1; $gotestsum $flags -race -p 1 -timeout 15m ./fsm/... ./enforce ./enforce/page ./audit ./httpapi/... ./agent/... && $again $flags -race -parallel 2 -timeout 20m); }
kernel() { $gotestsum -tags hashicorpmetrics -count=1 -p 1 -timeout 10m $kernels; }
fleet() { previous && $gotestsum -tags hashicorpmetrics -count=1 -timeout 30m -p 1 ./test ./test/soak; }
package() { $gotestsum -tags hashicorpmetrics -count=1 -timeout 30m -p 1 ./test/debian; }

previous() { # builds the release before, whose commit test/previous names, for the test of upgrades
	if [ ! -e test/previous ]; then
		echo "there is no release yet (no test/previous): upgrades are tested from this build to a next one alone"
		return 0
	fi
	local commit dir=.cache/previous
	commit=$(cat test/previous) || return 1
	git worktree remove --force "$dir" 2> /dev/null
	git worktree add --quiet --detach "$dir" "$commit" && make --no-print-directory -C "$dir" build || return 1
	export PALISADE_PREVIOUS=$PWD/$dir/bin/palisade
}
qemu() { $gotestsum -tags hashicorpmetrics -count=1 -timeout 20m -p 1 ./test/qemu; }

generated() { # the committed generated files are what their sources give
	go generate ./... && git diff --exit-code -- '*.pb.go' docs/openapi.json &&
		test -z "$(gofmt -l $(git ls-files '*.go'))"
}

web() { # the committed build of the page is what its source gives, and the source is without fault
	(cd web/ui && npm ci --no-audit --no-fund && npm run check && npm run build) && git diff --exit-code --stat -- web/dist &&
		test -z "$(git ls-files --others -- web/dist)"
}
browser() { $gotestsum $flags -timeout 20m -p 1 ./test/chromium ./test/browser; }

only=${1:-}
stage lint make --no-print-directory lint
stage generated generated
stage web web
stage unit unit
stage race race
stage kernel kernel
stage fuzz test/fuzz.sh 20000x
stage fleet fleet
stage browser browser
stage qemu qemu
stage package package
stage vuln test/vuln.sh

printf '\n'
for s in "${passed[@]}"; do echo "passed: $s"; done
for s in "${skipped[@]}"; do echo "SKIPPED, not checked: $s"; done
for s in "${failed[@]}"; do echo "FAILED: $s"; done
echo "${#passed[@]} passed, ${#failed[@]} failed, ${#skipped[@]} skipped"
[ "${#failed[@]}" = 0 ] && [ "${#passed[@]}" -gt 0 ]
