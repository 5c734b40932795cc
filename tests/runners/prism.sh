#!/usr/bin/env bash
# Beam's portable runner Prism, driven in a separate process by the API of Flink's and Dataflow's
# runners. Built once into .cache/prism from the Go module, whose checksum is
# pinned here. Usage: tests/runners/prism.sh build | up PORT | down
set -euo pipefail
cd "$(dirname "$0")/../.."

VERSION=v2.77.0
SUM=h1:RsC61pHEvtySEHAURQyP/+CVOJm/hy5hewuG9JF0+Ow=
CACHE="$PWD/.cache/prism"
BINARY="$CACHE/bin/prism-$VERSION"

build() {
  [ -x "$BINARY" ] && return
  command -v go >/dev/null || { echo "prism.sh: Go is needed to build Prism" >&2; exit 1; }
  export GOPATH="$CACHE/go" GOCACHE="$CACHE/build" GOFLAGS=-modcacherw
  local sum
  sum=$(go mod download -json "github.com/apache/beam/sdks/v2@$VERSION" |
    sed -n 's/.*"Sum": "\(.*\)".*/\1/p')
  [ "$sum" = "$SUM" ] || { echo "prism.sh: checksum is $sum, expected $SUM" >&2; exit 1; }
  GOBIN="$CACHE/bin" go install "github.com/apache/beam/sdks/v2/go/cmd/prism@$VERSION"
  mv "$CACHE/bin/prism" "$BINARY"
  rm -rf "$CACHE/go" "$CACHE/build"  # the binary is all that is needed
}

case "${1:-}" in
  build) build ;;
  up)
    build
    nohup "$BINARY" -job_port "${2:?port}" -serve_http=false >"$CACHE/prism.log" 2>&1 &
    echo $! >"$CACHE/prism.pid"
    ;;
  down)
    if [ -f "$CACHE/prism.pid" ]; then
      kill "$(cat "$CACHE/prism.pid")" 2>/dev/null || true
      rm "$CACHE/prism.pid"
    fi
    ;;
  *)
    echo "usage: tests/runners/prism.sh build | up PORT | down" >&2
    exit 2
    ;;
esac
