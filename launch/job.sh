# Sourced by launchers: reading arguments and recipe, stopping, and the verdict.
# shellcheck shell=bash
# shellcheck source=launch/env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

# What messages call the script; Slurm runs a copy under another name.
SCRIPT=launch/${0##*/}

fail() {
    echo "error: $1" >&2
    exit 2
}

# read_arguments ARGUMENT ...: sets RECIPE, DRY_RUN, OVERRIDES and ACCEPTED, which is empty or
# --accept-changes with its fields, to be the trainer's last words. The script's own options are
# read by its own_option, which takes "$@" and returns 1 for one that it does not know.
read_arguments() {
    RECIPE="" DRY_RUN="" OVERRIDES=() ACCEPTED=()
    while (($#)); do
        WORDS=1
        case $1 in
            -h | --help) usage && exit 0 ;;
            --dry-run) DRY_RUN=1 ;;
            --accept-changes | --accept-changes=*) take_fields "$@" ;;
            -*) own_option "$@" || fail "unknown option $1; see $SCRIPT --help" ;;
            *=*) OVERRIDES+=("$1") ;;
            *)
                [[ -z $RECIPE ]] || fail "two recipes given: $RECIPE and $1"
                RECIPE=$1
                ;;
        esac
        shift "$WORDS"
    done
    [[ -n $RECIPE ]] || { usage >&2 && exit 2; }
    # shellcheck disable=SC2034 # for the caller
    readonly RECIPE DRY_RUN OVERRIDES ACCEPTED
}

# take_value VARIABLE OPTION [VALUE ...]: sets it, and counts the value as read.
take_value() {
    [[ -n ${3:-} ]] || fail "$2 needs a value; see $SCRIPT --help"
    printf -v "$1" %s "$3"
    WORDS=2
}

# take_fields --accept-changes FIELD ..., or --accept-changes=FIELD: adds them to ACCEPTED, and
# counts them as read. Where the recipe is still to come, one field is read.
take_fields() {
    local fields=() word
    if [[ $1 == *=* ]]; then
        set -- "${1%%=*}" "${1#*=}"
        WORDS=0 # its field is the same word
    fi
    for word in "${@:2}"; do
        [[ -n $word && $word != -* && $word != *=* ]] || break
        fields+=("$word")
        [[ -n $RECIPE ]] || break
    done
    ((${#fields[@]})) || fail "$1 needs a field of the recipe, as in $1 optimizer.lr"
    ((${#ACCEPTED[@]})) || ACCEPTED=("$1")
    ACCEPTED+=("${fields[@]}")
    WORDS=$((WORDS + ${#fields[@]}))
}

# read_recipe RECIPE [a.b=c ...]: sets RUN_DIR, SEQUENCE_PARALLEL_SIZE and RECIPE_FILE, which may be
# a shipped one that was given by its name, or exits with the error.
read_recipe() {
    local facts
    facts=$("$PYTHON" -m launch.recipe_facts "$@") || exit 2
    eval "$facts"
}

check_num_processes() {
    if (($1 % SEQUENCE_PARALLEL_SIZE)); then
        fail "$1 processes are not a multiple of train.sequence_parallel_size $SEQUENCE_PARALLEL_SIZE"
    fi
}

# find_mpirun: sets MPIRUN to the one next to $PYTHON, whose library mpi4py loads before any other,
# or to that of PATH. mpi4py does not look next to a system Python.
find_mpirun() {
    local python
    python=$(command -v -- "$PYTHON") || python=""
    MPIRUN=$(dirname -- "$python")/mpirun
    [[ -n $python && -x $MPIRUN && $MPIRUN != /usr/bin/* && $MPIRUN != /bin/* ]] || MPIRUN=mpirun
}

# read_hostfile FILE: sets HOSTS and NUM_SLOTS; every host has a name that resolves, once.
read_hostfile() {
    local host slots rest line=0
    [[ -f $1 ]] || fail "there is no hostfile $1; it has a line 'HOST slots=GPUS' for each host"
    HOSTS=() NUM_SLOTS=0
    while read -r host slots rest || [[ -n $host ]]; do
        line=$((line + 1))
        [[ -n $host && $host != \#* ]] || continue
        [[ $slots =~ ^slots=[1-9][0-9]*$ && (-z $rest || $rest == \#*) ]] \
            || fail "$1, line $line: expected 'HOST slots=GPUS', found '$host${slots:+ $slots}${rest:+ $rest}'"
        [[ " ${HOSTS[*]} " != *" $host "* ]] || fail "$1, line $line: $host is listed twice"
        getent ahosts "$host" >/dev/null \
            || fail "$1, line $line: the name $host does not resolve; see /etc/hosts or DNS"
        HOSTS+=("$host")
        NUM_SLOTS=$((NUM_SLOTS + ${slots#slots=}))
    done <"$1"
    ((${#HOSTS[@]})) || fail "hostfile $1 names no host"
    forget_this_host
}

# forget_this_host: other hosts may have the GPUs that this one lacks; their processes check.
forget_this_host() {
    [[ -z $ACCELERATOR_IS_OURS ]] || unset DS_ACCELERATOR
}

# print_command CMD ...: what a dry run shows.
print_command() {
    local name
    for name in $(forwarded_variables | grep -vE '^(PATH|PYTHONWARNINGS|LD_LIBRARY_PATH)$'); do
        printf '%s=%q ' "$name" "${!name}"
    done
    printf '%q ' "$@"
    echo
}

# supervise CMD ...: run it; SIGTERM, SIGINT and SIGUSR1 ask the run to save and end, by its STOP
# file, which works under every launcher; the verdict comes from its run_state.json.
# Sets for the caller VERDICT, STEP, REASON (of a stop, as in run_state.json), SIGNALLED and
# STATUS (the launcher's exit code); returns 0 when the run is complete or was stopped.
supervise() {
    local starts child guard
    VERDICT=refused STEP=0 REASON="" SIGNALLED="" STATUS=2
    starts=$("$PYTHON" -m launch.verdict starts "$RUN_DIR") || return 2
    mkdir -p "$RUN_DIR" || return 2
    take_back_stop # of a launch script that was killed before it could do so
    # A session of its own: Ctrl-C reaches this script alone, and the run ends cleanly.
    setsid "$@" &
    child=$!
    end_a_launcher_that_stays "$child" &
    guard=$!
    trap 'ask_to_stop TERM' TERM
    trap 'ask_to_stop USR1' USR1
    trap 'if [[ $SIGNALLED == INT ]]; then kill -TERM -- "-$child"; else ask_to_stop INT; fi' INT
    while kill -0 "$child" 2>/dev/null; do
        wait "$child" && STATUS=0 || STATUS=$?
    done
    trap - TERM INT
    trap '' USR1 # one that arrives now must not end this script before the verdict
    kill "$guard" 2>/dev/null || true
    # What it started and left running ends with it.
    pkill -TERM --session "$child" || true
    take_back_stop
    # shellcheck disable=SC2034 # STEP and REASON are for the caller
    read -r VERDICT STEP REASON < <("$PYTHON" -m launch.verdict judge "$RUN_DIR" "$starts" || true)
    if [[ $VERDICT != complete && $VERDICT != stopped ]]; then
        echo "(the launcher ended with exit code $STATUS)" >&2
        return 1
    fi
}

# end_a_launcher_that_stays PID: a launcher can wait for a lost host long after the run has recorded
# its end, and keep the others' GPUs meanwhile. It is then ended, with all that it has started.
end_a_launcher_that_stays() {
    local mark=$RUN_DIR/.launched patience=${ENTRODROP_END_SECONDS:-60} since=""
    touch -- "$mark" # an older state file is that of an earlier start
    trap 'rm -f -- "$mark"; exit 0' TERM
    while kill -0 "$1" 2>/dev/null; do
        sleep 2 >/dev/null 2>&1 &
        wait $!
        if [[ $RUN_DIR/run_state.json -nt $mark ]] \
            && ! grep -q '"state": "running"' "$RUN_DIR/run_state.json"; then
            since=${since:-$SECONDS}
        fi
        if [[ -n $since ]] && ((SECONDS - since >= patience)); then
            echo "the run ended $patience s ago and its launcher has not: ending it" >&2
            pkill -TERM --session "$1"
            sleep 10 >/dev/null 2>&1
            pkill -KILL --session "$1"
        fi
    done
    rm -f -- "$mark"
}

# The words distinguish this request from a STOP file of the user, which stays when a run has not
# honoured it, and which is left unchanged.
STOP_WORDS="requested by a launch script"

ask_to_stop() {
    echo "got SIG$1: asking the run to save and end (${RUN_DIR}/STOP)" >&2
    SIGNALLED=$1
    [[ -e $RUN_DIR/STOP ]] || echo "$STOP_WORDS" >"$RUN_DIR/STOP"
}

take_back_stop() {
    if grep -qsF "$STOP_WORDS" "$RUN_DIR/STOP"; then
        rm -f -- "$RUN_DIR/STOP"
    fi
}
