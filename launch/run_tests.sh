#!/usr/bin/env bash
# Run the tests of this repository; the last lines say what was left out and why.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/env.sh
source launch/env.sh

# One thread a process: the tests start several processes on few cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
# More workers than cores: tests of clusters, launchers and kills mostly wait. -n0 in ARGS: only one.
exec "$PYTHON" -m pytest -rs --durations=25 -n 4 --dist loadfile --no-loadscope-reorder "$@"
