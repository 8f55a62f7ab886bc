#!/usr/bin/env bash
# Builds dist/palisade_VERSION_ARCH.deb and its list of libraries (CycloneDX) from this checkout. Needs only Go and
# git. The same commit gives the same bytes, wherever it is checked out.
#
#   build.sh [ARCH...]     amd64 and arm64 by default
#
# VERSION, if set, is that of the build; else it comes from git. BINARY, if set, is packed instead of a new build.
# DIST is where the files go.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
export CGO_ENABLED=0 GOFLAGS="-trimpath -buildvcs=false" LC_ALL=C TZ=UTC
tags=hashicorpmetrics${TAGS:+,$TAGS}
version=${VERSION:-$(git describe --tags --always --dirty)}
MTIME=$(git log -1 --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
# A version of Debian begins with a digit; a build without a release comes before every release.
case $version in
v[0-9]*) DEB_VERSION=${version#v} ;;
[0-9]*.*) DEB_VERSION=$version ;;
*) DEB_VERSION=0.0.0~$(git log -1 --format=%cd --date=format-local:%Y%m%d%H%M%S).$version ;;
esac
DEB_VERSION=${DEB_VERSION//-/+}
export SOURCE_DATE_EPOCH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
dist=$(realpath -m "${DIST:-dist}")
mkdir -p "$dist"
(cd "$here/tools" && go build -o "$work/nfpm" github.com/goreleaser/nfpm/v2/cmd/nfpm && go build -o "$work/sbom" ./sbom)

build() { # ARCH FILE [PROGRAM]
	GOOS=linux GOARCH=$1 go build -tags "$tags" -ldflags "-s -w -buildid= -X main.version=$version" -o "$2" "./cmd/${3:-palisade}"
}
# What says how the program is used comes from the program itself, on the machine that builds.
build "$(go env GOHOSTARCH)" "$work/host"
for ARCH in "${@:-amd64 arm64}"; do
	for ARCH in $ARCH; do
		ROOT=$work/$ARCH
		mkdir "$ROOT"
		if [ -n "${BINARY:-}" ]; then cp "$BINARY" "$ROOT/palisade"; else build "$ARCH" "$ROOT/palisade"; fi
		build "$ARCH" "$ROOT/libvirt-hook" libvirt-hook
		for shell in bash zsh fish; do "$work/host" completion "$shell" > "$ROOT/palisade.$shell"; done
		"$work/host" man | gzip -9n > "$ROOT/palisade.1.gz"
		"$work/sbom" "$ROOT/palisade" "$DEB_VERSION" > "$ROOT/sbom.cdx.json"
		sed -e "s|\${ARCH}|$ARCH|; s|\${DEB_VERSION}|$DEB_VERSION|; s|\${MTIME}|$MTIME|; s|\${ROOT}|$ROOT|" "$here/nfpm.yaml" > "$work/nfpm.yaml"
		(cd "$here" && "$work/nfpm" package --config "$work/nfpm.yaml" --packager deb --target "$work/$ARCH.deb") > "$work/nfpm.log" 2>&1 || { cat "$work/nfpm.log" >&2; exit 1; }
		name=palisade_${DEB_VERSION}_$ARCH
		mv "$work/$ARCH.deb" "$dist/$name.deb"
		cp "$ROOT/sbom.cdx.json" "$dist/$name.cdx.json"
		(cd "$dist" && sha256sum "$name.deb" "$name.cdx.json")
	done
done
