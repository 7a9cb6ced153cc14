#!/bin/bash
# Several machines without a scheduler. On each of them, at about the same time:
#   NODES=2 HEAD=10.0.0.1 configs/scale/torchrun.sh configs/recipes/gpt2.yaml configs/scale/fsdp.yaml --data.corpus text/
# HEAD is the address of one of the machines; GPUS is how many each has. checkpoints/ must be on a file system that all
# machines share.
set -eu
config=${1:-configs/base.yaml}
overlay=${2:-configs/scale/ddp.yaml}
nodes=${NODES:-1}
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}

# If one process dies, torchrun ends the others. It restarts none (--max-restarts=0): the same command, given again,
# resumes from the last checkpoint.
exec torchrun --nnodes="$nodes" --nproc-per-node="$gpus" --max-restarts=0 \
    --rdzv-backend=c10d --rdzv-endpoint="${HEAD:-localhost}:29400" --rdzv-id=tinytf \
    -m tinytf fit --config "$config" --config "$overlay" \
    --trainer.num_nodes "$nodes" --trainer.devices "$gpus" --ckpt_path last "${@:3}"
