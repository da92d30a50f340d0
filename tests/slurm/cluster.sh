#!/bin/bash
# The daemons of a SLURM cluster on one machine, in namespaces of their own:
#
#   unshare --mount --pid --fork --kill-child --mount-proc bash cluster.sh FOLDER NODE...
#
# This script is process 1 of its namespace: when its input is closed it ends, and the kernel ends every daemon and every
# job with it. The nodes' names resolve here alone: /etc/hosts of the machine is covered, not changed.
set -euo pipefail
folder=$1
shift
mount --bind "$folder/hosts" /etc/hosts
munged --foreground --force --num-threads=2 --key-file="$folder/munge.key" --socket="$folder/munge.sock" \
  --pid-file="$folder/munged.pid" --log-file="$folder/log/munged.log" --seed-file="$folder/munge.seed" &
until [[ -S $folder/munge.sock ]]; do sleep 0.05; done
export SLURM_CONF=$folder/slurm.conf
slurmctld -D -i &
for node in "$@"; do
  slurmd -D -N "$node" &
done
cat >/dev/null
