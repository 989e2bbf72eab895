"""The command as a user meets it: help that teaches, short errors, summaries with a next step."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.shards import open_corpus
from data_prep.viewing.show import printable

Cli = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("verb", [[], ["build"], ["pack"], ["inspect"], ["verify"]])
def test_help_explains_and_gives_an_example(run_cli: Cli, verb: list[str]) -> None:
    code, out, _ = run_cli(*verb, "--help")
    assert code == 0
    assert f"  python -m data_prep {' '.join(verb)}" in out


def test_the_whole_path_from_text_to_samples(run_cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    for path in sorted((ROOT / "data_prep").glob("*.py")):
        shutil.copy(path, source)
    out = tmp_path / "corpus"
    code, text, err = run_cli(
        *("build", "--input", source, "--out", out, "--include", "*.py", "--workers", 1),
        *("--train-tokenizer", "bpe", "--vocab-size", 512, "--val-frac", 0.2),
    )
    assert code == 0, err
    assert f"next       python -m data_prep pack {out}" in text
    assert "0 bad" in text
    code, text, err = run_cli("pack", out, "--seq-len", 256)
    assert code == 0, err
    assert "none lost" in text
    code, text, err = run_cli("inspect", out, "--seq-len", 256, "--sample", 0, 3)
    assert code == 0, err
    assert "sample 3 of train" in text
    assert "── document " in text
    code, text, err = run_cli("verify", out, "--deep")
    assert code == 0, err
    assert text.endswith(f"{out}: all checks passed\n")


@pytest.mark.parametrize("policy", ["best_fit", "concat"])
def test_pack_counts_the_documents_that_are_in_several_samples(
    run_cli: Cli, packed_corpus: Path, policy: str
) -> None:
    code, out, err = run_cli("pack", packed_corpus, "--seq-len", 128, "--policy", policy)
    assert code == 0, err
    index = open_corpus(packed_corpus).open_pack(128)
    samples_of: dict[int, set[int]] = {}
    for sample in range(index.num_samples("train")):
        for document in index.pieces(sample)[:, 0].tolist():
            samples_of.setdefault(document, set()).add(sample)
    num_split = sum(len(samples) > 1 for samples in samples_of.values())
    assert 0 < num_split < len(samples_of)
    assert f"; {num_split} of {len(samples_of)} documents split over several samples\n" in out


def test_inspect_shows_documents_text_and_padding(run_cli: Cli, packed_corpus: Path) -> None:
    code, text, _ = run_cli("inspect", packed_corpus, "--split", "val")
    assert code == 0
    assert "── document 0 of val: " in text
    code, text, _ = run_cli("inspect", packed_corpus, "--seq-len", 256, "--sample", 10**6)
    assert code == 2
    last = 0
    while run_cli("inspect", packed_corpus, "--seq-len", 256, "--sample", last + 1)[0] == 0:
        last += 1
    _, text, _ = run_cli("inspect", packed_corpus, "--seq-len", 256, "--sample", last)
    assert "<eos>" in text
    assert "── padding: " in text


def test_text_from_a_corpus_cannot_steer_the_terminal() -> None:
    assert printable("a\tb\nc") == "a\tb\nc"
    assert printable("\x1b[31mred\x07 \r \u202e \x9b") == "\\x1b[31mred\\x07 \\r \\u202e \\x9b"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokenizer", "T", "--val-frac", "1"], "--val-frac 1.0: must be at least 0 and below 1"),
        (["--tokenizer", "T", "--workers", "0"], "--workers 0: must be at least 1"),
        (["--tokenizer", "T", "--shard-mib", "0"], "--shard-mib 0.0: must be above 0"),
        ([], "give either --tokenizer NAME_OR_PATH or --train-tokenizer"),
        (["--tokenizer", "T", "--train-tokenizer", "bpe"], "give either --tokenizer"),
        (["--train-tokenizer", "bpe"], "--train-tokenizer and --vocab-size go together"),
        (["--tokenizer", "T", "--text-key", "body"], "docs.jsonl:1: missing key 'body'"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    run_cli: Cli, tmp_path: Path, bpe_folder: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "docs.jsonl").write_text('{"text": "a"}\n')
    arguments = [str(bpe_folder) if a == "T" else a for a in arguments]
    out = tmp_path / "corpus"
    workers = [] if "--workers" in arguments else ["--workers", "1"]
    code, _, err = run_cli(
        "build", "--input", tmp_path / "docs.jsonl", "--out", out, *workers, *arguments
    )
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in err
    assert not out.exists()


def test_skip_lists_what_was_left_out(run_cli: Cli, tmp_path: Path, bpe_folder: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"text": "a"}\nbroken\n{"text": "b"}\n')
    common = ["build", "--input", path, "--tokenizer", bpe_folder, "--workers", 1, "--out"]
    code, out, _ = run_cli(*common, tmp_path / "corpus", "--on-error", "skip")
    assert code == 0
    assert "3 read = 2 kept + 0 empty + 1 bad" in out
    assert "1 x broken JSON" in out
    assert "docs.jsonl:2: broken JSON" in out


@pytest.mark.parametrize(
    ("names", "helps"),
    [
        (["one"], "1 document cannot be divided: a text file is one document; cut it into several"),
        (["one", "two"], "with so few documents raise --val-frac"),
    ],
)
def test_a_summary_without_held_out_documents_says_what_helps(
    run_cli: Cli, tmp_path: Path, bpe_folder: Path, names: list[str], helps: str
) -> None:
    (tmp_path / "src").mkdir()
    for name in names:
        (tmp_path / "src" / f"{name}.txt").write_text(name)
    code, out, err = run_cli(
        *("build", "--input", tmp_path / "src", "--tokenizer", bpe_folder, "--workers", 1),
        *("--val-frac", 1e-9, "--out", tmp_path / "corpus"),
    )
    assert code == 0, err
    assert f"note       no document was assigned to val; {helps}" in out


def test_a_damaged_corpus_is_exit_code_1_with_the_shards_name(
    run_cli: Cli, packed_corpus: Path
) -> None:
    path = packed_corpus / "shard-train-main-00000.tokens"
    path.write_bytes(path.read_bytes()[:-2])
    code, out, _ = run_cli("verify", packed_corpus)
    assert code == 1
    assert "FAILED  sizes" in out
    assert "shard-train-main-00000.tokens: damaged: expected" in out
    code, _, err = run_cli("pack", packed_corpus, "--seq-len", 32)
    assert code == 2
    assert err.startswith("error: ")


def test_the_reader_loads_without_torch_transformers_or_tokenizers() -> None:
    script = (
        "import sys, data_prep.shards, data_prep.__main__\n"
        "bad = {'torch', 'transformers', 'datasets', 'training', 'tokenizers', 'mpi4py'}\n"
        "assert not bad & set(sys.modules), bad & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_mpi_ranks_write_the_bytes_that_processes_write(
    tmp_path: Path,
    packed_corpus: Path,
    bpe_folder: Path,
    tree: Callable[[Path], dict[str, bytes]],
    build_corpus: Callable[..., Path],
    start_mpi: Callable[..., subprocess.Popen[str]],
) -> None:
    source = tmp_path / "docs.jsonl"
    one = build_corpus(source, out=tmp_path / "one", val_frac=0.2)
    command = ["build", "--input", source, "--val-frac", "0.2"]
    command += ["--tokenizer", bpe_folder, "--out", tmp_path / "many"]
    process = start_mpi(3, "-m", "data_prep", *command)
    assert process.wait(timeout=120) == 0
    assert tree(one) == tree(tmp_path / "many")


@pytest.mark.parametrize("command", [["pack", "--seq-len", "32"], ["dedup"], ["verify"]])
def test_a_command_that_shares_no_work_is_done_once_under_mpi(
    packed_corpus: Path,
    start_mpi: Callable[..., subprocess.Popen[str]],
    command: list[str],
) -> None:
    """The ranks would fight for its lock, or wait for work that never comes."""
    process = start_mpi(2, "-m", "data_prep", command[0], packed_corpus, *command[1:])
    try:
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
    if command[0] != "verify":
        made = {"pack": "pack-32", "dedup": "removals"}[command[0]]
        assert (packed_corpus / made).is_dir()


def test_a_mistake_in_such_a_command_ends_the_mpi_job(
    tmp_path: Path, start_mpi: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start_mpi(2, "-m", "data_prep", "pack", tmp_path / "nowhere", "--seq-len", "32")
    try:
        assert process.wait(timeout=60) == 2
    finally:
        process.kill()


def test_score_without_training_says_where_it_runs(tmp_path: Path) -> None:
    """As in the image for data preparation, which has neither training nor torch."""
    for package in ("common", "data_prep"):
        shutil.copytree(ROOT / package, tmp_path / package)
    refused = subprocess.run(
        [sys.executable, "-m", "data_prep", "score", "corpus", "--model", "m", "--seq-len", "64"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2
    assert "error: score runs a model, but training is not installed" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_unknown_option_is_told_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["dedup", str(tmp_path), "--near", "--treshold", "0.8"])
    error = "--treshold: unknown argument; did you mean --threshold?; see dedup --help"
    assert capsys.readouterr().err.rstrip().endswith(error)
