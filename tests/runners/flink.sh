#!/usr/bin/env bash
# A Flink cluster on the loopback interface, one job manager and two task managers, with Beam's
# job server in front of it. Usage: tests/runners/flink.sh up [PORT] | down [PORT] | pin
# PORT (8081) is that of Flink's REST API; the next four are those of the job manager, the job
# server, its artifacts and its expansion service. The jars of flink-pom.xml come from Maven
# Central, are cached in .cache/flink and checked against flink.sha256, which `pin` rewrites.
set -euo pipefail
cd "$(dirname "$0")/../.."

PORT=${2:-8081}
NAME=flink
# The job server uploads its class path with every job, except jars under a path of this name,
# which the task managers have already.
JARS="$PWD/.cache/flink/gradle/wrapper"
. tests/runners/jars.sh
RUN="$CACHE/run-$PORT"
OPENS=(java.base/java.{lang,lang.reflect,lang.invoke,net,io,nio,text,time,util}=ALL-UNNAMED
  java.base/java.util.{concurrent,concurrent.atomic,concurrent.locks}=ALL-UNNAMED
  java.base/sun.net.util=ALL-UNNAMED java.base/sun.nio.ch=ALL-UNNAMED)

start() {  # name, megabytes of heap, class, then its arguments
  local name=$1 heap=$2 class=$3
  shift 3
  nohup java "-Xmx${heap}m" -XX:+UseSerialGC "${OPENS[@]/#/--add-opens=}" \
    -Dorg.slf4j.simpleLogger.showDateTime=true -Djava.io.tmpdir="$RUN/tmp" \
    -cp "$JARS/*" "$class" "$@" >"$RUN/$name.log" 2>&1 </dev/null &
  echo $! >"$RUN/$name.pid"
}

wait_for() {  # what, then a command that succeeds when it is there
  local what=$1 file
  shift
  for _ in $(seq 120); do
    "$@" && return
    for file in "$RUN"/*.pid; do
      kill -0 "$(cat "$file")" 2>/dev/null || break 2
    done
    sleep 0.5
  done
  tail -n 20 "$RUN"/*.log >&2
  down
  fail "$what did not come up; its log's end is above"
}

two_task_managers() {
  curl -sf "http://127.0.0.1:$PORT/overview" 2>/dev/null | grep -q '"taskmanagers":2'
}

job_server_listens() { (: >"/dev/tcp/127.0.0.1/$((PORT + 2))") 2>/dev/null; }

up() {
  rm -rf "$RUN/conf" "$RUN/tmp"
  mkdir -p "$RUN/conf" "$RUN/tmp"
  ! compgen -G "$RUN/*.pid" >/dev/null || fail "it is up on port $PORT already; tests/runners/flink.sh down"
  ! (: >"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null || fail "port $PORT is in use; name another"
  cat >"$RUN/conf/config.yaml" <<CONFIG
jobmanager.rpc.address: 127.0.0.1
jobmanager.rpc.port: $((PORT + 1))
jobmanager.bind-host: 127.0.0.1
rest.address: 127.0.0.1
rest.bind-address: 127.0.0.1
rest.port: $PORT
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
taskmanager.memory.network.min: 128m
taskmanager.memory.network.max: 128m
classloader.resolve-order: parent-first
io.tmp.dirs: $RUN/tmp
CONFIG
  start jobmanager 512 org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint \
    --configDir "$RUN/conf"
  for k in 1 2; do
    start "taskmanager$k" 640 org.apache.flink.runtime.taskexecutor.TaskManagerRunner \
      --configDir "$RUN/conf"
  done
  wait_for "the cluster" two_task_managers
  echo "flink.sh: Flink is up with two task managers, http://127.0.0.1:$PORT"
  start jobserver 512 org.apache.beam.runners.flink.FlinkJobServerDriver \
    --flink-master="127.0.0.1:$PORT" --flink-conf-dir="$RUN/conf" --job-host=127.0.0.1 \
    --job-port=$((PORT + 2)) --artifact-port=$((PORT + 3)) --expansion-port=$((PORT + 4))
  wait_for "Beam's job server" job_server_listens
  echo "flink.sh: Beam's job server is up, localhost:$((PORT + 2))"
}

down() {
  local file
  for file in "$RUN"/*.pid; do
    [ -f "$file" ] || continue
    kill "$(cat "$file")" 2>/dev/null || true
  done
  for file in "$RUN"/*.pid; do
    [ -f "$file" ] || continue
    for _ in $(seq 20); do
      kill -0 "$(cat "$file")" 2>/dev/null || break
      sleep 0.25
    done
    kill -9 "$(cat "$file")" 2>/dev/null || true
    rm "$file"
  done
  rm -rf "$RUN/tmp"
}

case "${1:-}" in
  up)
    fetch
    up
    ;;
  down) down ;;
  pin) pin ;;
  *)
    echo "usage: tests/runners/flink.sh up [PORT] | down [PORT] | pin" >&2
    exit 2
    ;;
esac
