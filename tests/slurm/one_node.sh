#!/usr/bin/env bash
# A Slurm of one node on this machine, from Debian's packages (apt-get install slurm-wlm munge), on loopback, as root:
#   tests/slurm/one_node.sh start FOLDER     brings it up, its state in FOLDER, and waits until the node is idle
#   tests/slurm/one_node.sh stop FOLDER
# Then `export SLURM_CONF=FOLDER/slurm.conf`.
set -euo pipefail
what=$1 folder=$(realpath -m "$2")
if [ "$what" = stop ]; then
  for name in slurmd slurmctld munged; do [ ! -f "$folder/$name.pid" ] || kill "$(cat "$folder/$name.pid")" || true; done
  exit 0
fi
mkdir -p "$folder"/{state,spool,munge}
chmod 700 "$folder/munge"
[ -f "$folder/munge/key" ] || dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none
chmod 600 "$folder/munge/key"
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" \
  --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 - 1024))
cat > "$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MailProg=/bin/true
ReturnToService=2
KillWait=30
JobRequeue=1
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(nproc --all) RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$folder/slurm.conf
slurmctld
slurmd
for _ in $(seq 60); do
  sinfo --noheader --format=%T 2>/dev/null | grep -q idle && exit 0
  sleep 1
done
echo "the node did not come up: see $folder/*.log" >&2
exit 1
