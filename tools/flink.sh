#!/usr/bin/env bash
# A Flink cluster on the loopback interface, one job manager and two task managers, and Beam's job
# server in front of it. Usage: tools/flink.sh up | down
# Flink comes from the Python package that carries its jars, Beam's job server from Maven Central;
# both are cached in .cache/flink and pinned here.
set -euo pipefail
cd "$(dirname "$0")/.."

FLINK=1.20.3
FLINK_SHA256=f07f07a46bb272c1e851379ed92105928367019db31240091a5367fc92800289
BEAM=2.72.0
JOB_SERVER=beam-runners-flink-1.20-job-server
# Empty until somebody has had the jar: the first download then says what to pin.
JOB_SERVER_SHA256=
CACHE="$PWD/.cache/flink"
OPENS=(java.base/java.{lang,lang.reflect,net,io,nio,text,time,util,util.concurrent}=ALL-UNNAMED
  java.base/sun.net.util=ALL-UNNAMED java.base/sun.nio.ch=ALL-UNNAMED)

fail() { echo "flink.sh: $*" >&2; exit 1; }

fetch_flink() {
  [ -d "$CACHE/lib" ] && return
  mkdir -p "$CACHE"
  .venv-tfx/bin/python -m pip download --quiet --no-deps --no-binary=:all: --no-build-isolation \
    --require-hashes -d "$CACHE" \
    -r <(echo "apache-flink-libraries==$FLINK --hash=sha256:$FLINK_SHA256") ||
    fail "apache-flink-libraries $FLINK cannot be had"
  tar -xzf "$CACHE/apache-flink-libraries-$FLINK.tar.gz" -C "$CACHE" --strip-components=2 \
    "apache-flink-libraries-$FLINK/deps/lib"
  rm "$CACHE/apache-flink-libraries-$FLINK.tar.gz"
}

fetch_job_server() {
  local jar="$CACHE/$JOB_SERVER-$BEAM.jar" sum
  if [ ! -f "$jar" ]; then
    mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy \
      -Dartifact="org.apache.beam:$JOB_SERVER:$BEAM" -DoutputDirectory="$CACHE" \
      >"$CACHE/mvn.log" 2>&1 ||
      fail "org.apache.beam:$JOB_SERVER:$BEAM cannot be had from Maven; see $CACHE/mvn.log"
  fi
  sum=$(sha256sum "$jar" | cut -d' ' -f1)
  [ -z "$JOB_SERVER_SHA256" ] && echo "flink.sh: pin JOB_SERVER_SHA256=$sum"
  [ -z "$JOB_SERVER_SHA256" ] || [ "$sum" = "$JOB_SERVER_SHA256" ] ||
    fail "the checksum of $jar is $sum, expected $JOB_SERVER_SHA256"
}

start() {  # name, class, then its arguments
  local name=$1 class=$2
  shift 2
  nohup java -Xmx768m "${OPENS[@]/#/--add-opens=}" \
    -Dlog4j.configurationFile="$CACHE/conf/log4j.properties" -cp "$CACHE/lib/*" \
    "$class" --configDir "$CACHE/conf" "$@" >"$CACHE/$name.log" 2>&1 &
  echo $! >"$CACHE/$name.pid"
}

cluster_up() {
  mkdir -p "$CACHE/conf"
  cat >"$CACHE/conf/config.yaml" <<CONFIG
jobmanager.rpc.address: 127.0.0.1
jobmanager.bind-host: 127.0.0.1
rest.address: 127.0.0.1
rest.bind-address: 127.0.0.1
taskmanager.host: 127.0.0.1
taskmanager.bind-host: 127.0.0.1
taskmanager.numberOfTaskSlots: 1
taskmanager.cpu.cores: 1
taskmanager.memory.framework.heap.size: 128m
taskmanager.memory.framework.off-heap.size: 128m
taskmanager.memory.jvm-metaspace.size: 256m
taskmanager.memory.jvm-overhead.min: 192m
taskmanager.memory.jvm-overhead.max: 192m
taskmanager.memory.task.heap.size: 512m
taskmanager.memory.task.off-heap.size: 64m
taskmanager.memory.managed.size: 256m
taskmanager.memory.network.min: 64m
taskmanager.memory.network.max: 64m
io.tmp.dirs: $CACHE/tmp
CONFIG
  cat >"$CACHE/conf/log4j.properties" <<LOG
rootLogger.level = INFO
rootLogger.appenderRef.out.ref = out
appender.out.name = out
appender.out.type = Console
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %c{1} %m%n
LOG
  mkdir -p "$CACHE/tmp"
  start jobmanager org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint
  start taskmanager1 org.apache.flink.runtime.taskexecutor.TaskManagerRunner
  start taskmanager2 org.apache.flink.runtime.taskexecutor.TaskManagerRunner
  for _ in $(seq 90); do
    curl -sf http://127.0.0.1:8081/overview 2>/dev/null | grep -q '"taskmanagers":2' && return
    sleep 1
  done
  down
  fail "the cluster did not come up in 90 s; see $CACHE/*.log"
}

job_server_up() {
  nohup java -Xmx512m -jar "$CACHE/$JOB_SERVER-$BEAM.jar" --flink-master=127.0.0.1:8081 \
    --job-host=127.0.0.1 --job-port=8099 --artifact-port=8098 --expansion-port=8097 \
    >"$CACHE/jobserver.log" 2>&1 &
  echo $! >"$CACHE/jobserver.pid"
}

down() {
  local file
  for file in "$CACHE"/*.pid; do
    [ -f "$file" ] || continue
    kill "$(cat "$file")" 2>/dev/null || true
    rm "$file"
  done
}

case "${1:-}" in
  up)
    fetch_flink
    cluster_up
    echo "flink.sh: Flink $FLINK is up, http://127.0.0.1:8081"
    (fetch_job_server) || { down; exit 1; }
    job_server_up
    echo "flink.sh: Beam's job server is up, localhost:8099"
    ;;
  down) down ;;
  *)
    echo "usage: tools/flink.sh up | down" >&2
    exit 2
    ;;
esac
