"""Small corpora and tokenizers for the tests of data_prep."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from data_prep.__main__ import main
from data_prep.build import build
from data_prep.build_options import BuildOptions
from data_prep.packing.pack import pack
from data_prep.reading import token_files
from data_prep.tokenizing.chat import ChatEncoder
from data_prep.tokenizing.training import train_tokenizer
from tests.data_prep.chat_templates import CHATML, QWEN, SPECIALS, MakeFolder
from tests.mpi import find_mpirun

ROOT = Path(__file__).parents[2]

# What breaks tokenizers and their users: emoji with joiners, CJK, NUL, CRLF, tabs, runs of
# white space, combining marks, a byte-order mark, text that looks like control tokens.
TRICKY = (
    "def f(x):\r\n\treturn x  +   1\r\n\r\n\n\n",
    "👩‍👩‍👧‍👦 naïve café e\u0301 ﬁne Ω≈ç√∫",
    "汉字かな交じり文。한국어 العربية हिन्दी",
    "nul \x00 in the middle, \ufeff a mark, \u2028 a line, \xa0 a space",
    "<eos> </s> <s> <unk> <|endoftext|> [INST] ▁",
    "    leading and trailing    ",
    "1234567890 3.14 it's don't WE'LL",
    "a\nb\n\nc\n\n\nd \n e\n f",
    "x" * 3000,
)


@pytest.fixture(scope="session")
def tricky() -> tuple[str, ...]:
    return TRICKY


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """120 different documents of 1 to 400 words."""
    rng = random.Random(0)
    words = ["the", "a", "of", "tokens", "entropy", "low", "high", "packs", "sample"]
    words += ["日本", "naïve", "x1", "\n", "\t,", "."]
    return [
        f"document {n} " + " ".join(rng.choices(words, k=rng.randint(1, 400))) for n in range(120)
    ]


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers") / "bpe"
    train_tokenizer([*texts, *TRICKY], algorithm="bpe", vocab_size=400, to=folder)
    return folder


@pytest.fixture(scope="session")
def unigram_folder(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers") / "unigram"
    train_tokenizer([*texts, *TRICKY], algorithm="unigram", vocab_size=400, to=folder)
    return folder


@pytest.fixture(scope="session")
def write_jsonl() -> Callable[[Path, Iterable[str]], Path]:
    def write(path: Path, contents: Iterable[str]) -> Path:
        lines = (json.dumps({"text": text}) + "\n" for text in contents)
        path.write_text("".join(lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def build_corpus(tmp_path: Path, bpe_folder: Path) -> Callable[..., Path]:
    """Build from one input into `tmp_path/corpus`, in this process, with the small BPE."""

    def make(*inputs: Path, **changes: Any) -> Path:
        defaults: dict[str, Any] = {
            "tokenizer": str(bpe_folder),
            "out": tmp_path / "corpus",
            "num_workers": 1,
            "val_frac": 0.0,
        }
        options = BuildOptions(inputs=inputs, **{**defaults, **changes})
        build(options)
        return options.out

    return make


@pytest.fixture
def packed_corpus(
    tmp_path: Path,
    texts: list[str],
    write_jsonl: Callable[..., Path],
    build_corpus: Callable[..., Path],
) -> Path:
    """A corpus with both splits, several shards and packs of 64 and 256 tokens."""
    source = write_jsonl(tmp_path / "docs.jsonl", texts)
    folder = build_corpus(source, val_frac=0.2, shard_mib=0.02)
    pack(folder, seq_len=64)
    pack(folder, seq_len=256, policy="concat")
    return folder


@pytest.fixture
def source(tmp_path: Path, texts: list[str], write_jsonl: Callable[..., Path]) -> Path:
    """Documents of real text, in one file."""
    return write_jsonl(tmp_path / "docs.jsonl", texts)


@pytest.fixture
def run_cli(
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    """Run a verb in this process; gives exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit_:  # argparse leaves this way
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def start_mpi() -> Callable[..., subprocess.Popen[str]]:
    """Start Python on several MPI ranks; skips where there is no mpirun."""
    mpirun = find_mpirun()
    if mpirun is None:
        pytest.skip("needs mpirun")
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True).stdout
    more = ["--oversubscribe"] if "Open MPI" in version else []
    allow_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

    def start(num_ranks: int, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [mpirun, "-n", str(num_ranks), *more, sys.executable, *map(str, arguments)],
            text=True,
            env={**os.environ, **allow_root, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
        )

    return start


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder with its bytes."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            os.fspath(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return read


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory: pytest.TempPathFactory, bpe_folder: Path) -> MakeFolder:
    """The small BPE with tokens of chat models, and a template."""

    def make(template: str | None, *, in_settings: bool = False, **config: Any) -> Path:
        folder = tmp_path_factory.mktemp("chat")
        backend = Tokenizer.from_file(str(bpe_folder / "tokenizer.json"))
        backend.add_special_tokens(SPECIALS)
        backend.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>", "<turn>"])
        backend.enable_truncation(8)  # what a careless save leaves behind
        backend.save(str(folder / "tokenizer.json"))
        config = {"bos_token": "<|begin_of_text|>", "eos_token": "<eos>", **config}
        if template is not None and in_settings:
            config["chat_template"] = template
        elif template is not None:
            (folder / "chat_template.jinja").write_text(template)
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture(scope="session")
def chatml(make_folder: MakeFolder) -> ChatEncoder:
    return ChatEncoder(make_folder(CHATML))


@pytest.fixture(scope="session")
def qwen(make_folder: MakeFolder) -> ChatEncoder:
    return ChatEncoder(make_folder(QWEN))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 16 bytes, so that documents cross their borders."""
    monkeypatch.setattr(token_files, "PART_BYTES", 16)
