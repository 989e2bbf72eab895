# Sourced by the scripts of this folder: which python, which accelerator, what stays quiet.
# Sets PYTHON, NUM_GPUS and NUM_CORES; exports what the processes to be started read.
# shellcheck shell=bash

REPO_ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

if [[ -z ${PYTHON:-} ]]; then
    if [[ -x $REPO_ROOT/.venv/bin/python ]]; then
        PYTHON=$REPO_ROOT/.venv/bin/python
    else
        PYTHON=python3
    fi
fi

count_gpus() {
    if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c '[^[:space:]]' || true
    elif command -v nvidia-smi >/dev/null; then
        # Without a working driver nvidia-smi fails: that is no GPU.
        { nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU' || true
    else
        echo 0
    fi
}

NUM_GPUS=$(count_gpus)
NUM_CORES=$("$PYTHON" -c 'import os; print(len(os.sched_getaffinity(0)))' 2>/dev/null || nproc)

if ((NUM_GPUS == 0)); then
    # DeepSpeed otherwise looks for an accelerator and warns when there is none.
    export DS_ACCELERATOR=cpu
fi

# Notices of libraries about themselves: nothing that a user of this project could act on.
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore::DeprecationWarning,ignore::FutureWarning}
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}
export TRANSFORMERS_VERBOSITY=${TRANSFORMERS_VERBOSITY:-error}
export DS_LOG_LEVEL=${DS_LOG_LEVEL:-warning}
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-true}
export PYTHONPATH=$REPO_ROOT${PYTHONPATH:+:$PYTHONPATH}
# The variables are for the scripts that source this file.
: "$PYTHON" "$NUM_CORES"
