#!/usr/bin/env bash
# Train a recipe on all GPUs of this machine, or on CPU processes where there is none.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/local.sh RECIPE [-n N] [--cpu] [--dry-run] [a.b=c ...]

Runs `python -m training train RECIPE` in N processes of this machine under torchrun.

  -n N        number of processes; default: one a GPU, without a GPU as many as share a
              sequence (train.sequence_parallel_size)
  --cpu       leave GPUs alone
  --dry-run   print what would run and stop
  a.b=c       change keys of the recipe, as in train.epochs=3

examples:
  launch/local.sh training/recipes/quickstart.yaml
  launch/local.sh training/recipes/quickstart.yaml -n 2 --dry-run train.epochs=2
TEXT
}

fail() {
    echo "error: $1" >&2
    exit 2
}

recipe="" num_processes="" dry_run="" use_cpu="" overrides=()
while (($#)); do
    case $1 in
        -h | --help) usage && exit 0 ;;
        -n) num_processes=${2:?-n needs a number} && shift ;;
        --cpu) use_cpu=1 ;;
        --dry-run) dry_run=1 ;;
        -*) fail "unknown option $1; see launch/local.sh --help" ;;
        *=*) overrides+=("$1") ;;
        *)
            [[ -z $recipe ]] || fail "two recipes given: $recipe and $1"
            recipe=$1
            ;;
    esac
    shift
done
[[ -n $recipe ]] || { usage >&2 && exit 2; }
[[ -f $recipe ]] || fail "there is no recipe $recipe"
if [[ -n $use_cpu ]]; then
    export CUDA_VISIBLE_DEVICES=""
fi

# shellcheck source=launch/env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

# Reads the recipe with its overrides, so that a mistake in it shows before N processes start.
sequence_parallel_size=$("$PYTHON" - "$recipe" "${overrides[@]}" <<'PYTHON'
import sys

from training.recipe_file import load_recipe

try:
    recipe = load_recipe(sys.argv[1], sys.argv[2:])
except ValueError as error:
    sys.exit(f"error: {error}")
print(recipe.train.sequence_parallel_size)
PYTHON
) || exit 2

if [[ -z $num_processes ]]; then
    num_processes=$((NUM_GPUS > 0 ? NUM_GPUS : sequence_parallel_size))
fi
[[ $num_processes =~ ^[1-9][0-9]*$ ]] || fail "-n $num_processes is no number of processes"
if ((num_processes % sequence_parallel_size)); then
    fail "-n $num_processes is no multiple of train.sequence_parallel_size $sequence_parallel_size"
fi
if ((NUM_GPUS > 0 && num_processes > NUM_GPUS)); then
    fail "-n $num_processes exceeds the $NUM_GPUS GPUs of this machine; --cpu leaves them alone"
fi

if ((NUM_GPUS == 0)); then
    # Without this every process starts a thread a core and they all fight for them.
    threads=$((NUM_CORES / num_processes))
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
    if [[ -e /sys/class/net/lo ]]; then
        # gloo otherwise looks the host's name up, which fails in many containers.
        export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo}
    fi
fi

command=("$PYTHON" -m launch.torchrun --standalone --local-addr=127.0.0.1
    "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1"
    "--nproc-per-node=$num_processes" -m training train "$recipe" "${overrides[@]}")
if [[ -n $dry_run ]]; then
    for name in DS_ACCELERATOR OMP_NUM_THREADS GLOO_SOCKET_IFNAME; do
        [[ -z ${!name:-} ]] || printf '%s=%s ' "$name" "${!name}"
    done
    printf '%q ' "${command[@]}"
    echo
    exit 0
fi
exec "${command[@]}"
