#!/usr/bin/env bash
# Run the tests of this repository; the last lines show what was skipped and why.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/env.sh
source launch/env.sh

# One thread per process: the tests start several processes on few cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
# Otherwise each of hundreds of processes would compile our sources again.
unset PYTHONDONTWRITEBYTECODE
# Scripts that tests start find what lies beside them.
unset PYTHONSAFEPATH

# More workers than cores: tests of clusters, launchers and kills mostly wait. A worker takes whole
# files, so that one file needs none, and starts at once.
workers=(-n 4 --dist loadfile --no-loadscope-reorder)
files=0 others=0 before=""
# What follows these options is their value. Other paths must exist: with workers, pytest would run
# nothing and not say why.
takes_a_value='^(-[kmpconWr]|--[a-z-]+)$'
for argument in "$@"; do
    path=${argument%%::*}
    if [[ $before == --deselect || $before == --ignore ]]; then
        :
    elif [[ -f $path ]]; then
        files=$((files + 1))
    elif [[ -d $path ]]; then
        others=1
    elif [[ $path != -* && ($path == */* || $path == *.py) && ! $before =~ $takes_a_value ]]; then
        echo "error: $path: no such file or folder; paths begin at the root of the repository" >&2
        exit 2
    fi
    before=$argument
done
if ((files == 1 && others == 0)); then
    workers=()
fi

# A temporary folder of their own, which tests/conftest.py removes after a success.
ENTRODROP_TESTS_FOLDER=$(mktemp -d "${TMPDIR:-/tmp}/entrodrop.XXXXXX")
export ENTRODROP_TESTS_FOLDER TMPDIR=$ENTRODROP_TESTS_FOLDER
exec "$PYTHON" -m pytest -rs --durations=25 "${workers[@]}" "$@"
