# Sourced by every launcher: the python, the accelerator, how hosts communicate, what stays quiet.
# Sets PYTHON, NUM_GPUS and NUM_CORES; exports what the started processes read.
# ENTRODROP_SITE_ENV names a file with what is true of one cluster only (NCCL_SOCKET_IFNAME,
# NCCL_IB_HCA, module load ...); it is sourced first, and what it exports stays.
# shellcheck shell=bash

REPO_ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

if [[ -n ${ENTRODROP_SITE_ENV:-} ]]; then
    if [[ ! -r $ENTRODROP_SITE_ENV ]]; then
        echo "error: ENTRODROP_SITE_ENV: there is no file $ENTRODROP_SITE_ENV" >&2
        exit 2
    fi
    # shellcheck source=/dev/null
    source "$ENTRODROP_SITE_ENV"
fi

if [[ -z ${PYTHON:-} ]]; then
    if [[ -x $REPO_ROOT/.venv/bin/python ]]; then
        PYTHON=$REPO_ROOT/.venv/bin/python
    else
        PYTHON=python3
    fi
fi

# Kernels compile at the start, with the ninja that was installed beside the python.
if [[ $PYTHON == */* ]]; then
    PATH=$(cd -- "$(dirname -- "$PYTHON")" && pwd):$PATH
    export PATH
fi

count_gpus() {
    if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c '[^[:space:]]' || true
    elif command -v nvidia-smi >/dev/null; then
        # Without a working driver nvidia-smi fails: that counts as no GPU.
        { nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU' || true
    else
        echo 0
    fi
}

NUM_GPUS=$(count_gpus)
NUM_CORES=$("$PYTHON" -c 'import os; print(len(os.sched_getaffinity(0)))' 2>/dev/null || nproc)

ACCELERATOR_IS_OURS=""
if ((NUM_GPUS == 0)) && [[ -z ${DS_ACCELERATOR:-} ]]; then
    # DeepSpeed otherwise looks for an accelerator and warns when there is none.
    export DS_ACCELERATOR=cpu
    ACCELERATOR_IS_OURS=1
fi

# NCCL reports failures and nothing else; all other settings are best left at their defaults.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# A dead host is noticed by ssh within a minute, not by TCP after two hours.
export PDSH_SSH_ARGS_APPEND=${PDSH_SSH_ARGS_APPEND:--o ServerAliveInterval=15 -o ServerAliveCountMax=4}

# Samples of many lengths leave memory in pieces otherwise.
if [[ -z ${PYTORCH_CUDA_ALLOC_CONF:-} ]]; then
    export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}
fi

# Libraries' own notices: nothing that a user of this project could act on.
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore::DeprecationWarning,ignore::FutureWarning}
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}
export TRANSFORMERS_VERBOSITY=${TRANSFORMERS_VERBOSITY:-error}
export DS_LOG_LEVEL=${DS_LOG_LEVEL:-warning}
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-true}
# An installed package is found without; its folder may hold names of the standard library's.
if [[ $REPO_ROOT != */site-packages && $REPO_ROOT != */dist-packages ]]; then
    export PYTHONPATH=$REPO_ROOT${PYTHONPATH:+:$PYTHONPATH}
fi
# `python -m` otherwise takes a training.py or common.py of the folder that it is called in for ours.
export PYTHONSAFEPATH=${PYTHONSAFEPATH:-1}

# share_cores PROCESSES: threads for each process of this machine, unless the user has set them.
# Otherwise torchrun gives each a single one, which slows an optimizer in host memory, and without
# torchrun each starts one per core and they all compete for them.
share_cores() {
    local threads=$((NUM_CORES / $1))
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
}

# Names of the exported variables that processes on other hosts need; nothing secret among them.
forwarded_variables() {
    compgen -e | grep -E '^(NCCL_|GLOO_|UCX_|FI_|OMP_|DS_|DEEPSPEED_|PYTHON|TORCH|PYTORCH_|TRITON_|CUDA_|CUBLAS_|TRANSFORMERS_|TOKENIZERS_|TF_CPP|HF_HOME|HF_HUB_CACHE|HF_HUB_OFFLINE|MASTER_(ADDR|PORT)$|LD_LIBRARY_PATH|PATH$)' \
        | grep -vE 'TOKEN$|KEY|SECRET|PASSW|DS_ENV_FILE|CUDA_VISIBLE_DEVICES' || true
}

# The variables are for the scripts that source this file.
: "$PYTHON" "$NUM_CORES" "$ACCELERATOR_IS_OURS"
