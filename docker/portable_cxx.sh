#!/usr/bin/env bash
# g++ for CPU_ARCH instead of the processor that builds the image, which DeepSpeed would take.
set -euo pipefail

arguments=()
for argument in "$@"; do
    if [[ $(uname -m) == x86_64 ]]; then
        case $argument in
            -march=native) argument="-march=$CPU_ARCH" ;;
            # intrinsics of the same width as the instructions; x86-64-v4 has the wider ones
            -D__AVX512__) [[ $CPU_ARCH == x86-64-v4 ]] || argument="-D__AVX256__" ;;
        esac
    fi
    arguments+=("$argument")
done
exec g++ "${arguments[@]}"
