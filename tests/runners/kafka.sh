#!/usr/bin/env bash
# A Kafka broker on the loopback interface: KRaft, one node. Usage: tests/runners/kafka.sh
#   up [PORT] | down [PORT]     PORT (9092) is that of clients, the next that of the controller
#   kill PORT | start PORT      kill -9 the broker; start it again with what it holds
#   fetch | pin                 only get the jars
# The jars of kafka-pom.xml come from Maven Central, are cached in .cache/kafka and checked against
# kafka.sha256, which `pin` rewrites. Topics have the broker's time as timestamps; with a producer's
# timestamps, retention would delete old events at once. `down` deletes what the broker holds.
set -euo pipefail
cd "$(dirname "$0")/../.."

PORT=${2:-9092}
NAME=kafka
JARS="$PWD/.cache/kafka/libs"
. tests/runners/jars.sh
RUN="$CACHE/run-$PORT"

listens() { (: >"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null; }

storage() {
  java -Xmx128m -cp "$JARS/*" kafka.tools.StorageTool "$@" 2>>"$RUN/storage.log"
}

start() {
  nohup java -Xmx512m -XX:+UseSerialGC -Dorg.slf4j.simpleLogger.showDateTime=true \
    -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$JARS/*" \
    kafka.Kafka "$RUN/server.properties" >>"$RUN/broker.log" 2>&1 </dev/null &
  echo $! >"$RUN/broker.pid"
  for _ in $(seq 240); do
    listens && return
    kill -0 "$(cat "$RUN/broker.pid")" 2>/dev/null || break
    sleep 0.5
  done
  tail -n 20 "$RUN/broker.log" >&2
  down
  fail "the broker did not come up; its log's end is above"
}

up() {
  [ ! -f "$RUN/broker.pid" ] || fail "it is up on port $PORT already; $0 down $PORT"
  ! listens || fail "port $PORT is in use; name another"
  rm -rf "$RUN"
  mkdir -p "$RUN"
  cat >"$RUN/server.properties" <<CONFIG
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((PORT + 1))
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:$PORT,CONTROLLER://127.0.0.1:$((PORT + 1))
advertised.listeners=PLAINTEXT://127.0.0.1:$PORT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$RUN/data
log.message.timestamp.type=LogAppendTime
log.retention.check.interval.ms=1000
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
CONFIG
  storage format -t "$(storage random-uuid)" -c "$RUN/server.properties" >>"$RUN/storage.log" ||
    fail "the broker's directory cannot be made; see $RUN/storage.log"
  start
  echo "kafka.sh: Kafka is up, 127.0.0.1:$PORT"
}

stop() {  # signal
  [ -f "$RUN/broker.pid" ] || return 0
  kill "-$1" "$(cat "$RUN/broker.pid")" 2>/dev/null || true
  for _ in $(seq 40); do
    kill -0 "$(cat "$RUN/broker.pid")" 2>/dev/null || break
    sleep 0.25
  done
  kill -9 "$(cat "$RUN/broker.pid")" 2>/dev/null || true
  rm "$RUN/broker.pid"
}

down() {
  stop TERM
  rm -rf "$RUN/data"
}

case "${1:-}" in
  up) fetch && up ;;
  down) down ;;
  fetch) fetch ;;
  kill) stop KILL ;;
  start) start ;;
  pin) pin ;;
  *)
    echo "usage: tests/runners/kafka.sh up | down | kill | start | fetch | pin" >&2
    exit 2
    ;;
esac
