"""What tests of several packages share: one small corpus of real code."""

from __future__ import annotations

import json
import multiprocessing.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from _pytest.assertion import rewrite
from hypothesis import settings

from tests.made_once import made_once
from tests.warm_python import (
    be_plain_python,
    close_warm_python,
    open_warm_python,
    warm_python,
)

# New examples on every run of a developer, the same ones on every run of CI.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

# Tests run on CPUs, also where there are GPUs; before anything here loads torch. Workers find what
# the user had chosen under its own name.
GPUS_OF_USER = os.environ.setdefault(
    "ENTRODROP_TESTS_GPUS", os.environ.get("CUDA_VISIBLE_DEVICES", "all")
)
os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Read when Triton is imported, which DeepSpeed does: too late in the tests of our kernels.
os.environ["TRITON_INTERPRET"] = "1"


_EXIT_STATUS = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        be_plain_python()
        return
    open_warm_python()
    if workers := config.getoption("numprocesses", None):
        rewriting = threading.Thread(target=_rewrite_assertions, args=(config,))
        rewriting.start()
        # they need what it has loaded, each of them
        config.option.tx = [f"popen//python={warm_python()}"] * workers
        rewriting.join()


def _rewrite_assertions(config: pytest.Config) -> None:
    """Of all test files, as pytest does when it imports one.

    In a fresh clone each worker would, some ten seconds of processor time.
    """
    if sys.dont_write_bytecode:
        return
    state = config.stash[rewrite.assertstate_key]
    for path in Path(__file__).parent.rglob("*.py"):
        if path.name.startswith("test_"):
            kept = rewrite.get_cache_dir(path) / f"{path.stem}{rewrite.PYC_TAIL}"
            if rewrite._read_pyc(path, kept) is None and rewrite.try_makedirs(kept.parent):
                status, code = rewrite._rewrite_test(path, config)
                rewrite._write_pyc(state, code, status, kept)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_EXIT_STATUS] = exitstatus


def pytest_unconfigure(config: pytest.Config) -> None:
    """What tests left in temporary folders goes; after a failure it stays to be looked at."""
    if hasattr(config, "workerinput"):
        return
    close_warm_python()
    if folder := os.environ.get("ENTRODROP_TESTS_FOLDER"):  # of launch/run_tests.sh
        if config.stash.get(_EXIT_STATUS, 1):
            print(f"temporary files kept in {folder}")
        else:
            # behind what multiprocessing removes there by itself
            multiprocessing.util.Finalize(None, _remove, args=(folder,), exitpriority=-1000)


def _remove(folder: str) -> None:
    subprocess.run(["rm", "-rf", "--one-file-system", "--", folder], check=False)


# More than about half a minute beside others, the longest first. Worth a look when the last
# seconds of a run of all tests (`--durations=0`) are those of one file.
_LONG_FILES = (
    "docs/test_run_commands.py",
    "training/test_run.py",
    "training/test_model_gate.py",
    "data_prep/test_kill.py",
    "training/test_sweep_jobs.py",
    "docs/test_readme.py",
    "training/test_layouts.py",
    "training/test_heldout_sets.py",
    "launch/test_planned_memory.py",
    "training/test_ema.py",
    "training/test_evaluated_run.py",
    "data_prep/test_fuzz.py",
    "training/test_teacher.py",
    "training/test_replay.py",
    "benchmarks/test_study.py",
    "training/test_bad_steps.py",
    "training/test_checkpoint_kills.py",
    "training/test_stopping.py",
    "data_prep/test_unicode_tables.py",
    "training/test_trackers.py",
    "launch/test_preflight.py",
    "test_object_stores.py",
    "launch/test_kubernetes.py",
    "launch/test_quickstart.py",
    "benchmarks/test_bench_step.py",
    "training/test_tasks_evaluation.py",
    "data_prep/test_round_trip.py",
    "training/test_hybrids.py",
    "training/test_odd_machines.py",
)
_PLACE = {Path(__file__).parent / name: place for place, name in enumerate(_LONG_FILES)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that no worker is left alone with one at the end.

    Clusters before all: they are the longest and mostly wait while the other workers compute.
    """

    def place(item: pytest.Item) -> tuple[bool, int]:
        return item.get_closest_marker("cluster") is None, _PLACE.get(item.path, len(_PLACE))

    items.sort(key=place)


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python's own json package, tokenised with a BPE of 512 ids, packed to 64 tokens."""
    return made_once(tmp_path_factory, "small_corpus", _build_small_corpus)


def _build_small_corpus(folder: Path) -> None:
    from data_prep.build import build
    from data_prep.build_options import BuildOptions
    from data_prep.packing.pack import pack
    from data_prep.shards import open_corpus

    sources = [Path(json.__file__).parent, Path(os.__file__).parent / "logging"]
    options = BuildOptions(
        inputs=tuple(sources),
        out=folder,
        train_tokenizer="bpe",
        train_vocab_size=512,
        val_frac=0.3,
        num_workers=1,
        overwrite=True,
    )
    build(options)
    if not open_corpus(folder).num_documents("val"):  # of few files, other ones in each Python
        build(replace(options, val_frac=0.6))
    pack(folder, seq_len=64)


@pytest.fixture(autouse=True)
def _gpus_for_tests_of_gpus(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test marked gpu sees the machine's, in the processes that it starts and in its ranks."""
    if request.node.get_closest_marker("gpu") is None:
        return
    for name in ("DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "TRITON_INTERPRET"):
        monkeypatch.delenv(name)
    if GPUS_OF_USER != "all":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", GPUS_OF_USER)
    if not GPUS_OF_USER or not any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("needs a GPU")


@pytest.fixture(autouse=True)
def _stay_no_rank() -> Iterator[None]:
    """A process group in pytest's own process would make what later tests start its ranks."""
    yield
    assert "RANK" not in os.environ, "run it with tests.distributed.run_ranks"
