#!/usr/bin/env bash
# A SLURM of one node on this machine, in a folder of its own; needs root, slurmctld, slurmd, munged.
#
#   slurm_cluster.sh start FOLDER    then: export SLURM_CONF=FOLDER/slurm.conf
#   slurm_cluster.sh stop FOLDER
#
# Partition `low` is preempted by `high`: its jobs have 60 seconds to end, and are requeued.
set -euo pipefail
folder=$2

stop() {
  local name
  for name in slurmctld slurmd munged; do
    if [[ -s $folder/$name.pid ]]; then kill "$(<"$folder/$name.pid")" 2>/dev/null || true; fi
  done
}

port() { python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

start() {
  mkdir -p "$folder"/{state,spool}
  chmod 755 "$folder"
  (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
  munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" \
    --pid-file="$folder/munged.pid" --seed-file="$folder/munge.seed" --log-file="$folder/munged.log"
  cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(hostname)
SlurmctldPort=$(port)
SlurmdPort=$(port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=bf_interval=5,batch_sched_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
NodeName=$(hostname) CPUs=2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 MaxTime=60 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=60 State=UP
CONF
  export SLURM_CONF=$folder/slurm.conf
  slurmctld
  slurmd
  for _ in {1..60}; do
    if sinfo -h -p low -o %t 2>/dev/null | grep -q idle; then return; fi
    sleep 0.5
  done
  sinfo -N -l >&2 || true
  tail -5 "$folder"/*.log >&2
  echo "error: the node did not come up." >&2
  return 1
}

trap 'status=$?; if ((status)); then stop; fi' EXIT
"$1"
