#!/usr/bin/env bash
# Install the pinned DeepSpeed with its operators compiled beforehand, for the image.
# Compiled while it trains, they would need nvcc in the image and minutes on every node.
set -euo pipefail

requirement=$(grep '^deepspeed==' "$1")
export CXX
CXX=$(realpath -- "$(dirname -- "${BASH_SOURCE[0]}")")/portable_cxx.sh
if command -v nvcc >/dev/null; then
    # DeepSpeed refuses another minor version as well, in a traceback after minutes.
    nvcc_cuda=$(nvcc --version | sed -n 's/.*release \([0-9]*\.[0-9]*\),.*/\1/p')
    torch_cuda=$(python -c 'import torch; print(torch.version.cuda)' | cut -d. -f1,2)
    if [[ $nvcc_cuda != "$torch_cuda" ]]; then
        echo "error: BUILD_IMAGE has CUDA $nvcc_cuda, and torch is built for $torch_cuda; name a base" \
            "with that one" >&2
        exit 2
    fi
    # There is no GPU to be found while an image is built.
    export DS_ACCELERATOR=cuda
    ops=$DEEPSPEED_OPS
    echo "compiling for CUDA ($TORCH_CUDA_ARCH_LIST): $ops"
else
    export DS_ACCELERATOR=cpu
    ops=""
    for op in $DEEPSPEED_OPS; do
        # the only one that a CPU run uses
        [[ $op != cpu_adam ]] || ops=$op
    done
    echo "this base has no nvcc: no operators for CUDA; compiling for the CPU: ${ops:-none}"
fi
for op in $ops; do
    export "DS_BUILD_${op^^}=1"
done
pip install --no-deps --no-build-isolation --no-binary deepspeed "$requirement"
