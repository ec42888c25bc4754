#!/usr/bin/env bash
# A Ray cluster of this one machine.  tests/clusters/ray.sh start FOLDER | stop FOLDER
set -euo pipefail
command=$1 folder=$(realpath -m "$2")
python=${PYTHON:-python}

start() {
  for _ in 1 2 3; do  # on a busy machine a node is given up after 30 s
    begin && return
    stop
  done
  exit 1
}

begin() {
  mkdir -p "$folder"
  RAY_DISABLE_IMPORT_WARNING=1 "$python" -m ray.scripts.scripts start --head --num-cpus 2 --port 26379 \
    --include-dashboard=false --disable-usage-stats --temp-dir "$folder" > "$folder/start.log" 2>&1
}

stop() {
  mkdir -p "$folder"
  "$python" -m ray.scripts.scripts stop --force > "$folder/stop.log" 2>&1 || true
}

"$command"
