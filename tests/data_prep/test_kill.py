"""A build that is killed at any moment goes on where it was, and ends in the same bytes."""

from __future__ import annotations

import gzip
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data_prep.shards import open_corpus
from data_prep.verify import verify
from tests import grids

ROOT = Path(__file__).parents[2]
_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

# Tasks of a few documents and a commit behind each, so that a small corpus has many moments.
_MANY_MOMENTS = """
import sys
from data_prep import encode, write_corpus
from data_prep.reading import lines
write_corpus.COMMIT_SECONDS = 0.0
encode.TASK_BYTES = lines.PART_BYTES = 2000
if __name__ == "__main__":
    from data_prep.__main__ import main
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def mixed_inputs(tmp_path: Path, texts: list[str], write_jsonl: Callable[..., Path]) -> list[str]:
    """Arguments of a build: three domains, lines plain and packed, Parquet, text, masked ids."""
    plain = write_jsonl(tmp_path / "a.jsonl", texts[:30])
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(write_jsonl(tmp_path / "b", texts[30:50]).read_bytes()))
    table = pyarrow.table({"text": texts[50:70]})
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet", row_group_size=8)
    (tmp_path / "one.txt").write_text(texts[70])
    rng = random.Random(0)
    ids = [{"ids": [rng.randrange(300) for _ in range(40)], "m": [1, 0] * 20} for _ in range(30)]
    (tmp_path / "ids.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ids))
    return [
        *("--input", f"web={plain}", f"web={packed}", f"web={tmp_path / 'c.parquet'}"),
        *(f"text={tmp_path / 'one.txt'}", f"ids={tmp_path / 'ids.jsonl'}"),
        *("--field", "ids.ids=ids", "--field", "ids.loss_mask=m"),
        *("--val-frac", "0.3", "--shard-mib", "0.002"),
    ]


def test_every_kind_of_kill_point_resumes_to_the_same_bytes(
    tmp_path: Path, mixed_inputs: list[str], bpe_folder: Path
) -> None:
    """Before and after every fsync, rename and removal, and in the middle of every write."""
    (tmp_path / "killed").mkdir()
    # of about 400 events
    first, step = ("1", "1") if grids.WHOLE else ("3", "29")
    driver = [
        str(Path(__file__).with_name("kill_driver.py")),
        str(tmp_path / "killed"),
        first,
        step,
    ]
    build = ["build", *mixed_inputs, "--tokenizer", str(bpe_folder), "--workers", "1"]
    result = subprocess.run(
        [sys.executable, *driver, "1000", *build],
        capture_output=True,
        text=True,
        env=_ENVIRONMENT,
        timeout=3000 if grids.WHOLE else 300,
    )
    assert result.returncode == 0, result.stderr
    *trials, last = map(json.loads, result.stdout.splitlines())
    assert last["code"] == 0, "the last one must find no event left"
    assert len(trials) >= 12
    assert {trial["code"] for trial in trials} == {-signal.SIGKILL}
    assert not [trial for trial in trials if trial["torn"] or not trial["same"] or trial["left"]]
    kinds = {trial["event"] for trial in trials}
    assert {"half a write", "before fsync", "after fsync"} <= kinds


def _start(script: Path, *arguments: object) -> subprocess.Popen[str]:
    script.write_text(_MANY_MOMENTS)
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=_ENVIRONMENT,
    )


def _wait_for_progress(staging: Path, *, num_bytes: int) -> None:
    journal = staging / "journal.jsonl"
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.stat().st_size < num_bytes:
        assert time.monotonic() < deadline, "the build wrote no journal"
        time.sleep(0.005)


def _children(pid: int) -> list[int]:
    listing = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listing.read_text().split()]


def test_a_worker_that_is_killed_stops_the_build_and_loses_nothing(
    tmp_path: Path,
    texts: list[str],
    write_jsonl: Callable[..., Path],
    bpe_folder: Path,
    build_corpus: Callable[..., Path],
    tree: Callable[[Path], dict[str, bytes]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the kernel does to a worker that is out of memory."""
    source = write_jsonl(tmp_path / "docs.jsonl", texts * 40)
    whole = build_corpus(source, out=tmp_path / "whole")
    out = tmp_path / "corpus"
    arguments = ("build", "--input", source, "--tokenizer", bpe_folder, "--out", out)
    process = _start(tmp_path / "run.py", *arguments, "--workers", 2, "--val-frac", 0)
    _wait_for_progress(tmp_path / ".corpus.building", num_bytes=2000)
    # The first child is multiprocessing's resource tracker; the youngest is a worker.
    os.kill(_children(process.pid)[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "a worker process died, most likely out of memory" in errors
    assert "Traceback" not in errors
    assert not out.exists()
    capsys.readouterr()
    build_corpus(source)
    assert "resuming after" in capsys.readouterr().err
    assert tree(out) == tree(whole)


def test_a_rank_that_is_killed_takes_the_job_down_and_loses_nothing(
    tmp_path: Path,
    texts: list[str],
    write_jsonl: Callable[..., Path],
    bpe_folder: Path,
    build_corpus: Callable[..., Path],
    tree: Callable[[Path], dict[str, bytes]],
    start_mpi: Callable[..., subprocess.Popen[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_jsonl(tmp_path / "docs.jsonl", texts * 60)
    whole = build_corpus(source, out=tmp_path / "whole")
    out = tmp_path / "corpus"
    script = tmp_path / "run.py"
    script.write_text(_MANY_MOMENTS)
    arguments = ("build", "--input", source, "--tokenizer", bpe_folder, "--out", out)
    process = start_mpi(2, script, *arguments, "--val-frac", 0)
    _wait_for_progress(tmp_path / ".corpus.building", num_bytes=2000)
    os.kill(_children(process.pid)[-1], signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    assert not out.exists()
    deadline = time.monotonic() + 20
    while True:  # the other rank may hold the lock until the launcher has ended it
        try:
            capsys.readouterr()
            build_corpus(source)
            break
        except ValueError as error:
            assert "another process is writing it" in str(error)
            assert time.monotonic() < deadline, "a rank outlives the job"
            time.sleep(0.1)
    assert "resuming after" in capsys.readouterr().err
    assert tree(out) == tree(whole)


def test_workers_do_not_outlive_a_killed_build(
    tmp_path: Path, texts: list[str], write_jsonl: Callable[..., Path], bpe_folder: Path
) -> None:
    source = write_jsonl(tmp_path / "docs.jsonl", texts * 40)
    arguments = ("build", "--input", source, "--tokenizer", bpe_folder)
    process = _start(tmp_path / "run.py", *arguments, "--out", tmp_path / "corpus", "--workers", 2)
    _wait_for_progress(tmp_path / ".corpus.building", num_bytes=500)
    workers = _children(process.pid)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "workers outlive the build that was killed"
        time.sleep(0.05)


def test_a_full_disk_is_one_sentence_and_the_finished_part_is_kept(
    tmp_path: Path,
    texts: list[str],
    write_jsonl: Callable[..., Path],
    bpe_folder: Path,
    build_corpus: Callable[..., Path],
    tree: Callable[[Path], dict[str, bytes]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A limit on file sizes fails the very writes that a full disk fails."""
    source = write_jsonl(tmp_path / "docs.jsonl", texts * 20)
    whole = build_corpus(source, out=tmp_path / "whole")
    size = (whole / "shard-train-main-00000.tokens").stat().st_size

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    script = tmp_path / "run.py"
    script.write_text(_MANY_MOMENTS)
    out = tmp_path / "corpus"
    arguments = ["build", "--input", source, "--tokenizer", bpe_folder, "--out", out]
    result = subprocess.run(
        [sys.executable, script, *arguments, "--workers", "1", "--val-frac", "0"],
        capture_output=True,
        text=True,
        env=_ENVIRONMENT,
        preexec_fn=limit,
    )
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "no disk space left" in errors[0]
    assert "Traceback" not in result.stderr
    assert not out.exists()
    capsys.readouterr()
    build_corpus(source)
    assert "resuming after" in capsys.readouterr().err
    assert tree(out) == tree(whole)


def test_changed_inputs_or_options_start_anew_and_say_so(
    tmp_path: Path,
    texts: list[str],
    write_jsonl: Callable[..., Path],
    build_corpus: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "docs.jsonl"
    broken = [*texts[:60], "\ud83d"]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in broken))
    changes: list[dict[str, object]] = [{}, {"shard_mib": 0.5}, {"add_eos": False}]
    for change in changes:
        with pytest.raises(ValueError, match="lone surrogate"):
            build_corpus(source, **change)
    assert "but shard_mib changed: restarting" in capsys.readouterr().err
    write_jsonl(source, texts)
    folder = build_corpus(source)
    assert "but eos, inputs changed: restarting" in capsys.readouterr().err.replace(
        "shard_mib, ", ""
    )
    assert open_corpus(folder).num_documents() == 120
    assert all(check.problem is None for check in verify(folder, deep=True))


def test_an_input_that_changes_while_it_is_read_is_refused(
    tmp_path: Path,
    texts: list[str],
    write_jsonl: Callable[..., Path],
    build_corpus: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = write_jsonl(tmp_path / "docs.jsonl", texts)
    from data_prep import write_corpus

    add = write_corpus._DomainWriter.add

    def add_and_touch(writer: object, encoded: object) -> None:
        add(writer, encoded)  # type: ignore[arg-type]
        os.utime(source, ns=(1, 1))

    monkeypatch.setattr(write_corpus._DomainWriter, "add", add_and_touch)
    with pytest.raises(ValueError, match=r"docs\.jsonl: changed while being read"):
        build_corpus(source)
    assert not (tmp_path / "corpus").exists()
