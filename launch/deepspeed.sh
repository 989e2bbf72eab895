#!/usr/bin/env bash
# Train a recipe on the hosts of a hostfile, by the deepspeed launcher over ssh.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/deepspeed.sh RECIPE --hostfile FILE [--master-port P] [--dry-run]
    [--accept-changes FIELD ...] [a.b=c ...]

Starts one process per slot on every host of FILE (lines `HOST slots=GPUS`) by DeepSpeed's launcher,
pdsh and ssh. The repository, its Python, the corpus and the run folder have the same paths on all
hosts. Rank 0 prints here, the others into RUN/logs.

  --hostfile FILE     hosts, and the number of GPUs of each
  --master-port P     where the ranks meet on the first host (default: MASTER_PORT, else 29500)
  --dry-run           print what would run and stop
  --accept-changes FIELD
                      resume although this key differs from the checkpoint's, as in optimizer.lr
  a.b=c               override keys of the recipe, as in train.epochs=3

If the first host has several addresses, MASTER_ADDR selects the one where they meet. Ctrl-C,
SIGTERM and SIGUSR1 save and end the run; a second Ctrl-C ends it at once. The exit code is 0 when
the run is complete or was stopped.

example:
  launch/deepspeed.sh training/recipes/qwen3_0.6b.yaml --hostfile hosts.txt
TEXT
}

# shellcheck source=launch/job.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/job.sh"

hostfile="" port=${MASTER_PORT:-29500}
own_option() {
    case $1 in
        --hostfile) take_value hostfile "$@" ;;
        --master-port) take_value port "$@" ;;
        *) return 1 ;;
    esac
}
read_arguments "$@"
# Without one DeepSpeed would train on this host alone, with only a warning.
[[ -n $hostfile ]] || fail "--hostfile is missing; on this machine alone: launch/local.sh"

read_recipe "$RECIPE" "${OVERRIDES[@]}"
read_hostfile "$hostfile"
((${#HOSTS[@]} > 1)) || fail "$hostfile names only ${HOSTS[0]}; use launch/local.sh there"
check_num_processes "$NUM_SLOTS"
while read -r name; do
    # DeepSpeed sets a value between double quotes for the other host's shell.
    [[ ${!name} != *[\"\$\`\\$'\n']* ]] || fail "$name cannot be passed to other hosts: its value has a \
line break or one of \" \$ \` \\; change or unset it, or use launch/mpirun.sh"
done < <(forwarded_variables)

command=("$PYTHON" -m deepspeed.launcher.runner --hostfile "$(realpath -- "$hostfile")"
    --no_ssh_check ${MASTER_ADDR:+--master_addr "$MASTER_ADDR"} --master_port "$port"
    --module training train --rank-logs "$(realpath -- "$RECIPE_FILE")" "${OVERRIDES[@]}" "${ACCEPTED[@]}")
if [[ -n $DRY_RUN ]]; then
    print_command "${command[@]}"
    exit 0
fi

command -v pdsh >/dev/null || fail "pdsh is missing, which DeepSpeed uses to start hosts; install it"
unreachable=()
for host in "${HOSTS[@]}"; do
    ssh -o BatchMode=yes -o ConnectTimeout=10 "$host" true </dev/null || unreachable+=("$host")
done
((${#unreachable[@]} == 0)) \
    || fail "no ssh without a password from here to: ${unreachable[*]} (ssh's reason is above)"

# DeepSpeed passes on little of this environment; it reads the rest from a file of this name.
DS_ENV_FILE=$(mktemp)
export DS_ENV_FILE
trap 'rm -f -- "$DS_ENV_FILE"' EXIT
while read -r name; do
    printf '%s=%s\n' "$name" "${!name}"
done < <(forwarded_variables) >"$DS_ENV_FILE"
if ((NUM_GPUS == 0)); then
    export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu} # for the launcher alone, which would warn
fi
supervise "${command[@]}"
