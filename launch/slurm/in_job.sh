# Sourced by launch/slurm/*.sbatch: what Slurm says about this job, and requeueing it.
# shellcheck shell=bash
# shellcheck source=launch/job.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../job.sh"

say() {
    echo "=== $(date '+%F %T') job $SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}: $*"
}

# job_fact NAME: a field of `scontrol show job`, empty when Slurm does not answer.
job_fact() {
    scontrol --oneliner show job "$SLURM_JOB_ID" 2>/dev/null | tr ' ' '\n' | sed -n "s/^$1=//p"
}

# is_running: false once Slurm itself ends the job. Cancelled, it must stay so; preempted without a
# grace time, or with a lost node, it has been requeued already.
is_running() {
    local state
    state=$(job_fact JobState) || state=""
    [[ -z $state || $state == RUNNING ]]
}

# is_preempted: true within the grace time. Its SIGTERM reaches the processes and not this script;
# when they have ended, Slurm considers the job finished and does not requeue it.
is_preempted() {
    local start preempted
    start=$(job_fact StartTime) && preempted=$(job_fact PreemptTime) || return 1
    [[ $preempted == [0-9]* && ! $preempted < $start ]] # both as 2026-01-31T12:00:00
}

# queue_again WHY: the job goes back into the queue with its number and arguments.
queue_again() {
    local tries=0
    if ((${SLURM_RESTART_COUNT:-0} >= ${ENTRODROP_MAX_RESTARTS:-20})); then
        say "$1; not queued again: ENTRODROP_MAX_RESTARTS is reached"
        exit 1
    fi
    say "$1; queued again"
    # slurmctld may be away for a moment, as in an upgrade
    until scontrol requeue "$SLURM_JOB_ID"; do
        tries=$((tries + 1))
        ((tries < 10)) || fail "Slurm does not requeue the job; submit it again to resume"
        sleep 30
    done
    exit 0
}

# number_steps: gives the next srun another step number than in the previous start. When a process
# or a node is lost, Slurm (22.05) ends the step, and a minute later does so again, by its number
# alone: that SIGTERM then reaches the step of the next start.
number_steps() {
    if ((${SLURM_RESTART_COUNT:-0} % 2)); then
        srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 true
    fi
}

# run_or_queue_again CMD ...: work that resumes where it was when it is started again.
run_or_queue_again() {
    local status=0
    number_steps || true
    "$@" || status=$?
    if ((status)) && is_running && is_preempted; then
        queue_again "preempted"
    fi
    exit "$status"
}

# cores_of_a_task: --cpus-per-task, else a task's share of the job's cores on a node.
cores_of_a_task() {
    local cores=$((${SLURM_CPUS_ON_NODE:-1} * ${SLURM_NNODES:-1} / ${SLURM_NTASKS:-1}))
    echo "${SLURM_CPUS_PER_TASK:-$((cores > 0 ? cores : 1))}"
}

# set_meeting_point: MASTER_ADDR and MASTER_PORT, which Slurm does not set, and a task's threads.
set_meeting_point() {
    MASTER_ADDR=127.0.0.1
    if [[ -n ${SLURM_JOB_NODELIST:-} ]]; then
        MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
    fi
    # a different one for each job and each of its starts: two jobs may share a node
    MASTER_PORT=$((20000 + (${SLURM_JOB_ID:-0} * 7 + ${SLURM_RESTART_COUNT:-0}) % 10000))
    export MASTER_ADDR MASTER_PORT
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(cores_of_a_task)}
}

# check_gpus: one process per GPU, and every process sees all GPUs of its node.
check_gpus() {
    local num_nodes=${SLURM_NNODES:-1} num_tasks=${SLURM_NTASKS:-1}
    if [[ -n ${SLURM_GPUS_PER_TASK:-} || ${SLURM_GPU_BIND:-none} != none ]]; then
        fail "with --gpus-per-task or --gpu-bind a process does not see the GPUs of its node; give \
--gpus-per-node=G --ntasks-per-node=G instead"
    fi
    if [[ -n ${SLURM_GPUS_ON_NODE:-} ]] && ((SLURM_GPUS_ON_NODE * num_nodes != num_tasks)); then
        fail "$num_tasks tasks on $num_nodes nodes of $SLURM_GPUS_ON_NODE GPUs; one process uses one \
GPU: add --ntasks-per-node=$SLURM_GPUS_ON_NODE"
    fi
}

# srun_command CMD ...: sets SRUN, one process per task; one that fails ends those on all nodes.
srun_command() {
    SRUN=(srun --kill-on-bad-exit=1 --wait=60)
    if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
        # since 22.05 srun does not inherit it from sbatch
        SRUN+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
    fi
    # The processes meet through torch; a cluster's default MPI would only interfere.
    SRUN+=(--mpi=none "$@")
}

# print_job CMD ...: what a dry run shows.
print_job() {
    if [[ -n ${SLURM_JOB_ID:-} ]]; then
        echo "# ${SLURM_NTASKS:-1} processes on ${SLURM_NNODES:-1} nodes, $SLURM_JOB_NODELIST; job" \
            "$SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}"
    else
        echo "# outside a job; sbatch sets the numbers of processes and nodes"
    fi
    print_command "$@"
}
