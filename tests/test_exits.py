"""Every verb ends with its result, or with one sentence and a code."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import SafetensorError

import data_prep.__main__
import launch.__main__
import training.__main__
from common.exits import exit_code_of
from tests.warm_python import warm_python

ROOT = Path(__file__).resolve().parents[1]
COMMANDS: dict[str, Any] = {
    "data_prep": data_prep.__main__,
    "training": training.__main__,
    "launch": launch.__main__,
}
# enough for each verb's parser to be content
ARGUMENTS = {
    "add-tokens": ["x", "--tokenizer", "t", "--out", "o"],
    "train-tokenizer": ["--input", "x", "--algorithm", "bpe", "--vocab-size", "9", "--out", "o"],
    "build": ["--input", "x", "--tokenizer", "t", "--out", "o"],
    "dedup": ["x"],
    "decontaminate": ["x", "--against", "y"],
    "pack": ["x", "--seq-len", "8"],
    "score": ["x", "--model", "m", "--seq-len", "8"],
    "stats": ["x"],
    "inspect": ["x"],
    "verify": ["x"],
    "import-megatron": ["x", "--tokenizer", "t", "--out", "o"],
    "export-megatron": ["x", "--out", "o"],
    "mirror": ["x", "s3://bucket/x"],
    "preview": ["x", "--scores", "s", "--out", "o"],
    "report": ["x"],
    "push": ["x", "--to", "y"],
    "plan": ["x", "--gpus", "1", "--gpu-gib", "1"],
}
VERBS = [(name, verb) for name, module in COMMANDS.items() for verb in module.VERBS]
MISTAKES: list[tuple[BaseException, int, str]] = [
    (ValueError("the value is wrong"), 2, "error: the value is wrong"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 2, "error: [Errno 2] No"),
    (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "error: [Errno 13] Perm"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), 2, "error: no disk space left"),
    (ConnectionResetError(errno.ECONNRESET, "reset"), 2, "error: [Errno 104] reset"),
    (
        OSError(errno.EMFILE, "Too many open files"),
        2,
        "error: [Errno 24] Too many open files: this",
    ),
    (MemoryError("Unable to allocate 9 TiB"), 2, "error: not enough memory (Unable to allocate 9"),
    (SafetensorError("header too small"), 2, "error: header too small"),
    (torch.OutOfMemoryError("CUDA out of memory"), 2, "error: CUDA out of memory; `python -m l"),
    (
        torch.distributed.DistNetworkError("port: 29500, EADDRINUSE"),
        2,
        "error: port: 29500, EADDRINUSE; is MASTER_ADDR right, and MASTER_PORT free?",
    ),
    (KeyboardInterrupt(), 130, ""),
]


def run_main(name: str, verb: str, raises: Callable[[Any], int], patch: pytest.MonkeyPatch) -> int:
    command = importlib.import_module(f"{name}.commands.{verb.replace('-', '_')}")
    patch.setattr(command, "run", raises)
    code = COMMANDS[name].main([verb, *ARGUMENTS.get(verb, ["x"])])
    assert isinstance(code, int)
    return code


@pytest.mark.parametrize(("name", "verb"), VERBS)
def test_a_mistake_of_any_kind_is_one_line_and_a_code(name, verb, monkeypatch, capsys):
    for mistake, expected_code, words in MISTAKES:

        def fail(options: Any, error: BaseException = mistake) -> int:
            raise error

        assert run_main(name, verb, fail, monkeypatch) == expected_code
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(words)


@pytest.mark.parametrize(("name", "verb"), VERBS)
def test_a_fault_of_ours_keeps_its_traceback_and_a_result_its_code(name, verb, monkeypatch):
    def fail(options: Any) -> int:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        run_main(name, verb, fail, monkeypatch)
    assert run_main(name, verb, lambda options: 1, monkeypatch) == 1


def test_a_sentence_of_a_library_says_so_and_the_traceback_is_there_for_who_asks(
    monkeypatch, capsys
):
    def fail_within() -> int:
        node = yaml.ScalarNode("tag:yaml.org,2002:int", "ten")
        return int(yaml.SafeLoader("").construct_yaml_int(node))

    assert exit_code_of(fail_within) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("'ten' (raised in a library; ENTRODROP_TRACEBACK=1 shows where)")
    monkeypatch.setenv("ENTRODROP_TRACEBACK", "1")
    assert exit_code_of(fail_within) == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Traceback") and last.endswith("'ten'")


def test_a_pipe_to_another_process_that_breaks_is_an_error(monkeypatch, capsys):
    def fail(options: Any) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    assert run_main("training", "train", fail, monkeypatch) == 2
    assert "Broken pipe" in capsys.readouterr().err


def test_nobody_who_reads_the_output_is_no_error():
    """As in `... | head`, which has seen enough."""
    program = (
        "import sys\n"
        "from common.exits import exit_code_of\n"
        "def run():\n"
        "    for _ in range(10**5): print('a line')\n"
        "    return 1\n"
        "sys.exit(exit_code_of(run))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_a_rank_that_alone_knows_what_is_wrong_says_it(monkeypatch, capsys):
    """Where all fail, its launcher ends it before: torchrun, mpirun and srun end the others."""
    waited: list[float] = []
    monkeypatch.setattr("common.exits.time.sleep", waited.append)

    def fail() -> int:
        raise OSError(errno.EIO, "Input/output error", "shard-00001.tokens")

    assert exit_code_of(fail, rank=0) == 2
    said = "[Errno 5] Input/output error: 'shard-00001.tokens'\n"
    assert (waited, capsys.readouterr().err) == ([], f"error: {said}")
    assert exit_code_of(fail, rank=3) == 2
    assert waited[0] >= 1
    assert capsys.readouterr().err == f"error: rank 3: {said}"


@pytest.mark.parametrize(
    "encoding", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
def test_what_a_terminal_cannot_show_is_escaped(encoding):
    """As \u00b1 in the tables of a report, and the texts of a corpus."""
    program = (
        "import sys\n"
        "from common.exits import exit_code_of\n"
        "print_it = lambda: print('3.2 \\u00b1 0.1 \\u6c34 \\udcff') or 0\n"
        "sys.exit(exit_code_of(print_it))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONCOERCECLOCALE": "0"} | encoding,
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"3.2 \\xb1 0.1 \\u6c34 \\udcff\n"
    assert done.stderr == b""


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_while_the_verbs_are_loaded_is_one_line(name, monkeypatch, capsys):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMANDS[name], "add_verbs", interrupted)
    assert COMMANDS[name].main([]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("verb", ["train", "evaluate", "export", "report"])
def test_ctrl_c_before_the_work_begins_is_one_line(verb, tmp_path):
    """While it reads a recipe or a run's files: here a pipe that nobody writes to."""
    names = {"train": "recipe.yaml", "report": "metrics.jsonl"}
    path = tmp_path / names.get(verb, "recipe.resolved.yaml")
    os.mkfifo(path)
    argument = path if verb == "train" else tmp_path
    process = subprocess.Popen(
        [warm_python(), "-m", "training", verb, str(argument)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # a job in the background of a shell ignores Ctrl-C, and so would the process
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    writer = open_for_writing(path, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    os.close(writer)
    assert (process.returncode, said) == (130, "interrupted\n")


def open_for_writing(path: Path, reader: subprocess.Popen[str]) -> int:
    """Once the process has opened the pipe; it then waits for what will not come."""
    while True:
        assert reader.poll() is None
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            assert error.errno == errno.ENXIO
        time.sleep(0.1)
