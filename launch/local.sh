#!/usr/bin/env bash
# Train a recipe on all GPUs of this machine, or on CPU processes where there is none.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/local.sh RECIPE [-n N] [--cpu] [--dry-run] [--accept-changes FIELD ...]
           [a.b=c ...]

Runs `python -m training train RECIPE` in N processes of this machine under torchrun. Rank 0 prints
here, the others into RUN/logs.

  -n N        number of processes; default: one per GPU, without a GPU as many as share a
              sequence (train.sequence_parallel_size)
  --cpu       do not use GPUs
  --dry-run   print what would run and stop
  --accept-changes FIELD
              resume although this key differs from the checkpoint's, as in optimizer.lr
  a.b=c       override keys of the recipe, as in train.epochs=3

Ctrl-C, SIGTERM and SIGUSR1 save and end the run; a second Ctrl-C ends it at once. The exit code is
0 when the run is complete or was stopped.

examples:
  launch/local.sh training/recipes/quickstart.yaml
  launch/local.sh training/recipes/quickstart.yaml -n 2 --dry-run train.epochs=2
TEXT
}

# shellcheck source=launch/job.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/job.sh"

num_processes=""
own_option() {
    case $1 in
        -n) take_value num_processes "$@" ;;
        --cpu) export CUDA_VISIBLE_DEVICES="" DS_ACCELERATOR=cpu && NUM_GPUS=0 ;;
        *) return 1 ;;
    esac
}
read_arguments "$@"
read_recipe "$RECIPE" "${OVERRIDES[@]}"

if [[ -z $num_processes ]]; then
    num_processes=$((NUM_GPUS > 0 ? NUM_GPUS : SEQUENCE_PARALLEL_SIZE))
fi
[[ $num_processes =~ ^[1-9][0-9]*$ ]] || fail "-n $num_processes is not a number of processes"
check_num_processes "$num_processes"
if ((NUM_GPUS > 0 && num_processes > NUM_GPUS)); then
    fail "-n $num_processes exceeds the $NUM_GPUS GPUs of this machine; --cpu does not use them"
fi

share_cores "$num_processes"
if ((NUM_GPUS == 0)) && [[ -e /sys/class/net/lo ]]; then
    # gloo otherwise looks up the host name, which fails in many containers.
    export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo}
fi

command=("$PYTHON" -m launch.torchrun --standalone --local-addr=127.0.0.1
    "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1"
    "--nproc-per-node=$num_processes" -m training train --rank-logs "$RECIPE_FILE" "${OVERRIDES[@]}" "${ACCEPTED[@]}")
if [[ -n $DRY_RUN ]]; then
    print_command "${command[@]}"
    exit 0
fi
"$PYTHON" -m launch.recipe_facts --open-corpus "$RECIPE" "${OVERRIDES[@]}" || exit 2
supervise "${command[@]}"
