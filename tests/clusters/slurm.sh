#!/usr/bin/env bash
# A SLURM cluster of this one machine: munge, slurmctld, slurmd; partition "here".
#   tests/clusters/slurm.sh start FOLDER     configuration, state and logs go to FOLDER
#   tests/clusters/slurm.sh stop FOLDER
# Needs root and Debian's packages: apt-get install slurmctld slurmd slurm-client munge
set -euo pipefail
command=$1 folder=$(realpath -m "$2")
export SLURM_CONF=$folder/slurm.conf

start() {
  mkdir -p "$folder/state" "$folder/spool" /run/munge
  [ -f /etc/munge/munge.key ] || mungekey --create
  chown munge: /run/munge /etc/munge/munge.key
  pgrep -x munged > /dev/null || runuser -u munge -- munged
  cat > "$SLURM_CONF" << EOF
ClusterName=driftlab
SlurmctldHost=$(hostname -s)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
ReturnToService=2
SlurmctldTimeout=30
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
NodeName=$(hostname -s) CPUs=$(nproc) RealMemory=$(awk '/MemTotal/ {print int($2/1024*0.9)}' /proc/meminfo) State=UNKNOWN
PartitionName=here Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
  slurmctld -c -f "$SLURM_CONF"
  slurmd -c -f "$SLURM_CONF"
  for _ in $(seq 60); do
    sinfo --noheader --format %T 2> /dev/null | grep -q idle && return
    sleep 0.5
  done
  echo "the node did not become idle; see $folder/*.log" >&2
  exit 1
}

stop() {
  for name in slurmd slurmctld; do
    [ -f "$folder/$name.pid" ] && kill "$(cat "$folder/$name.pid")" || true
  done
}

"$command"
