#!/usr/bin/env bash
# The Flink cluster that PyFlink's wheel brings, on the loopback interface: one job manager and two
# task managers of one slot. Usage: tests/runners/pyflink.sh
#   up [PORT] | down [PORT]      PORT (8091) is that of the REST API, the next that of the job manager
#   run PORT SCRIPT ARGUMENTS    submit a Python job and return
#   kill PORT N | start PORT N   kill -9 task manager N with its Python workers; start it again
# FLINK_PYTHON (.venv-flink/bin/python) has apache-flink and what ofb_tf needs.
set -euo pipefail
cd "$(dirname "$0")/../.."

COMMAND=${1:-}
PORT=${2:-8091}
PYTHON=${FLINK_PYTHON:-$PWD/.venv-flink/bin/python}
RUN="$PWD/.cache/pyflink/run-$PORT"

fail() { echo "pyflink.sh: $*" >&2; exit 1; }

environment() {
  command -v java >/dev/null || fail "Java is needed (Debian: openjdk-17-jre-headless)"
  FLINK_HOME=$("$PYTHON" -c 'import importlib.util as u; print(u.find_spec("pyflink").submodule_search_locations[0])') ||
    fail "$PYTHON has no pyflink; run 'make setup-flink', or name another by FLINK_PYTHON"
  export FLINK_HOME FLINK_CONF_DIR="$RUN/conf" FLINK_OPT_DIR="$FLINK_HOME/opt"
  export FLINK_LIB_DIR="$FLINK_HOME/lib" FLINK_PLUGINS_DIR="$FLINK_HOME/plugins"
  export PYTHONPATH="$PWD" TF_CPP_MIN_LOG_LEVEL=2
  PATH="$(dirname "$PYTHON"):$PATH"
  # Java 17 hides what Flink reflects on; the wheel's own configuration lists it.
  read -ra OPENS < <(sed -n 's/^ *all: \(--add-.*\)/\1/p' "$FLINK_HOME/conf/config.yaml")
}

java_class() {  # log name, megabytes of heap, class, arguments
  local name=$1 heap=$2 class=$3
  shift 3
  exec java "-Xmx${heap}m" -XX:+UseSerialGC "${OPENS[@]}" "-Djava.io.tmpdir=$RUN/tmp" \
    "-Dlog4j.configurationFile=$RUN/conf/log4j.properties" "-Dlog.file=$RUN/$name.log" \
    -cp "$FLINK_HOME/lib/*:$FLINK_HOME/opt/*" "$class" "$@"
}

start() {  # name, then as for java_class; a process group, so that the Python workers are in it
  local name=$1
  export OPENS_LINE="${OPENS[*]}"
  setsid bash -c "$(declare -f java_class); read -ra OPENS <<<\"\$OPENS_LINE\"; RUN='$RUN'; java_class \"\$@\"" \
    java_class "$@" >"$RUN/$name.out" 2>&1 </dev/null &
  echo $! >"$RUN/$name.pid"
}

task_manager() {
  start "taskmanager$1" 512 org.apache.flink.runtime.taskexecutor.TaskManagerRunner \
    --configDir "$RUN/conf"
}

up() {
  ! compgen -G "$RUN/*.pid" >/dev/null || fail "it is up on port $PORT already; $0 down $PORT"
  ! (: >"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null || fail "port $PORT is in use; name another"
  rm -rf "$RUN"
  mkdir -p "$RUN/conf" "$RUN/tmp"
  cat >"$RUN/conf/config.yaml" <<CONFIG
jobmanager.rpc.address: 127.0.0.1
jobmanager.rpc.port: $((PORT + 1))
jobmanager.bind-host: 127.0.0.1
jobmanager.memory.process.size: 1000m
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
taskmanager.memory.task.heap.size: 384m
taskmanager.memory.task.off-heap.size: 64m
taskmanager.memory.managed.size: 128m
taskmanager.memory.network.min: 64m
taskmanager.memory.network.max: 64m
io.tmp.dirs: $RUN/tmp
execution.checkpointing.dir: file://$RUN/checkpoints
heartbeat.interval: 1000
heartbeat.timeout: 10000
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 100
restart-strategy.fixed-delay.delay: 1s
python.executable: $PYTHON
python.client.executable: $PYTHON
CONFIG
  cat >"$RUN/conf/log4j.properties" <<'LOG'
rootLogger.level = INFO
rootLogger.appenderRef.file.ref = File
appender.file.name = File
appender.file.type = FILE
appender.file.fileName = ${sys:log.file}
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d %-5p %c - %m%n
LOG
  start jobmanager 512 org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint \
    --configDir "$RUN/conf"
  task_manager 1
  task_manager 2
  for _ in $(seq 180); do
    if curl -sf "http://127.0.0.1:$PORT/overview" 2>/dev/null | grep -q '"taskmanagers":2'; then
      echo "pyflink.sh: Flink is up with two task managers, http://127.0.0.1:$PORT"
      return
    fi
    sleep 0.5
  done
  tail -n 20 "$RUN"/*.out "$RUN"/*.log >&2
  down
  fail "the cluster did not come up; its logs' ends are above"
}

down() {
  local file
  for signal in TERM KILL; do
    for file in "$RUN"/*.pid; do
      [ -f "$file" ] && kill "-$signal" -- "-$(cat "$file")" 2>/dev/null && sleep 1 || true
    done
  done
  rm -f "$RUN"/*.pid
  rm -rf "$RUN/tmp"
}

case $COMMAND in
  up) environment && up ;;
  down) down ;;
  run)
    environment
    script=$3
    shift 3
    java_class client 256 org.apache.flink.client.cli.CliFrontend run --detached \
      --jobmanager "127.0.0.1:$PORT" --python "$script" "$@"
    ;;
  kill) kill -KILL -- "-$(cat "$RUN/taskmanager${3:?number}.pid")" ;;
  start) environment && task_manager "${3:?number}" ;;
  *)
    echo "usage: tests/runners/pyflink.sh up | down | run | kill | start" >&2
    exit 2
    ;;
esac
