#!/bin/bash
# Several machines without a scheduler. On each of them, with its number (the first, 0, is the one that FIRST names):
#   FIRST=10.0.0.1 NODES=2 SHARED=/mnt/shared docs/cluster/nodes.sh 0
#   FIRST=10.0.0.1 NODES=2 SHARED=/mnt/shared docs/cluster/nodes.sh 1
set -eu

: "${FIRST:?the first machine, as the others reach it}" "${NODES:?how many machines}" "${SHARED:?a folder that all of them see}"
export HF_HOME="$SHARED/huggingface" HF_HUB_OFFLINE=1

exec torchrun --nnodes "$NODES" --node-rank "${1:?the number of this machine, from 0}" --nproc-per-node "${GPUS:-8}" \
  --master-addr "$FIRST" --master-port "${PORT:-29500}" \
  -m reproduce paper --scale 8b --videos "$SHARED/clips" --out "$SHARED/runs/8b"
