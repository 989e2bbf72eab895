#!/usr/bin/env bash
# One container's part of a run: torchrun joins several; the exit code says what to do next.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/kubernetes/worker.sh RECIPE [--dry-run] [--accept-changes FIELD ...] [a.b=c ...]

Runs in each container of a run, under Kubernetes (launch/kubernetes/base) or compose
(docker/compose.yaml), which set its place by environment variables:

  NUM_NODES             number of containers
  NODE_RANK             which of them this is, from 0
  MASTER_ADDR           the name of container 0
  MASTER_PORT           where they meet there (default: 29500)
  PROCESSES_PER_NODE    default: one per GPU, 1 without a GPU
  ENTRODROP_DNS_SECONDS    how long the name may take to appear (default: 900)
  ENTRODROP_MAX_CRASHES    starts in a row without a new checkpoint before it gives up (default: 3)

--accept-changes FIELD resumes although this key differs from the checkpoint's, as in optimizer.lr.

SIGTERM saves and ends the run on all containers. Exit codes:

  0   the run is complete, or was stopped by a file STOP in its folder
  1   start all containers again: it failed, or was asked to end by a signal and has saved
  2   an error in recipe, options or variables; another start would fail again
  3   gave up: ENTRODROP_MAX_CRASHES starts in a row without a new checkpoint

example:
  NUM_NODES=2 NODE_RANK=0 MASTER_ADDR=localhost launch/kubernetes/worker.sh \
      training/recipes/quickstart.yaml --dry-run
TEXT
}

# shellcheck source=launch/job.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../job.sh"
SCRIPT=launch/kubernetes/worker.sh

own_option() {
    return 1 # the environment says the rest
}
read_arguments "$@"
NUM_NODES=${NUM_NODES:-} NODE_RANK=${NODE_RANK:-} MASTER_ADDR=${MASTER_ADDR:-}
for name in NUM_NODES NODE_RANK MASTER_ADDR; do
    [[ -n ${!name} ]] || fail "$name is not set; see $SCRIPT --help"
done
[[ $NUM_NODES =~ ^[1-9][0-9]*$ ]] || fail "NUM_NODES is $NUM_NODES, not a number of containers"
if [[ ! $NODE_RANK =~ ^[0-9]+$ ]] || ((NODE_RANK >= NUM_NODES)); then
    fail "NODE_RANK is $NODE_RANK; the $NUM_NODES containers have 0 to $((NUM_NODES - 1))"
fi

read_recipe "$RECIPE" "${OVERRIDES[@]}"
num_processes=${PROCESSES_PER_NODE:-$((NUM_GPUS > 0 ? NUM_GPUS : 1))}
[[ $num_processes =~ ^[1-9][0-9]*$ ]] \
    || fail "PROCESSES_PER_NODE is $num_processes, not a number of processes"
check_num_processes $((num_processes * NUM_NODES))
share_cores "$num_processes"
command=("$PYTHON" -m launch.torchrun "--nnodes=$NUM_NODES" "--node-rank=$NODE_RANK"
    "--nproc-per-node=$num_processes" "--master-addr=$MASTER_ADDR"
    "--master-port=${MASTER_PORT:-29500}" "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1"
    -m training train "$RECIPE_FILE" --rank-logs "${OVERRIDES[@]}" "${ACCEPTED[@]}")
if [[ -n $DRY_RUN ]]; then
    print_command "${command[@]}"
    exit 0
fi

say() {
    echo "=== $(date '+%F %T') container $NODE_RANK of $NUM_NODES: $*"
}

# For the container that counts starts, for all: each counts until one finds a newer checkpoint.
count_try() {
    local tries=$RUN_DIR/.container-starts step last count
    mkdir -p -- "$RUN_DIR"
    read -r _ step _ < <("$PYTHON" -m launch.verdict judge "$RUN_DIR" -1 2>/dev/null || true)
    read -r last count 2>/dev/null <"$tries" || last=-1 count=0
    if ((step > last)); then
        count=0
    fi
    if ((count >= ${ENTRODROP_MAX_CRASHES:-3})); then
        rm -f -- "$tries"
        say "gave up: $count starts in a row without a checkpoint after step $step"
        exit 3
    fi
    echo "$step $((count + 1))" >"$tries"
    if ((count)); then
        say "start $((count + 1)) from step $step, in $((count * 30)) s"
        sleep $((count * 30))
    fi
}

wait_for_master() {
    local seconds=${ENTRODROP_DNS_SECONDS:-900} begun=$SECONDS
    until getent ahosts "$MASTER_ADDR" >/dev/null; do
        if ((SECONDS - begun >= seconds)); then
            echo "error: $MASTER_ADDR does not resolve after $seconds s: is container 0 running, \
and is there a service for its name?" >&2
            exit 1
        fi
        sleep 1
    done
}

say "$num_processes processes; master $MASTER_ADDR:${MASTER_PORT:-29500}; locked memory" \
    "$(ulimit -l) KiB; $(df -h --output=size /dev/shm | tail -n1 | tr -d ' ') in /dev/shm"
((NODE_RANK > 0)) || count_try
wait_for_master
supervise "${command[@]}" || exit 1
if [[ $VERDICT == stopped && -n $SIGNALLED ]]; then
    say "saved step $STEP; the next start resumes from it"
    exit 1
fi
((NODE_RANK > 0)) || rm -f -- "$RUN_DIR/.container-starts"
