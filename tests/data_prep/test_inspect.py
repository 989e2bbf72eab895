"""Looking at a corpus: on a terminal, and as a page in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from data_prep.packing.pack import pack
from data_prep.reading.fields import Fields
from data_prep.shards import Corpus, open_corpus
from data_prep.tokenizing.tokenizer import load_tokenizer
from data_prep.viewing.colours import css_colours
from data_prep.viewing.token_texts import texts_of
from tests.browser import built_page, picture, share_of_colour
from tests.scores import write_scores

Cli = Callable[..., tuple[int, str, str]]
HOSTILE = (
    "<script>document.body.innerHTML = 'gone'</script> &amp; \"quotes\" 'too' </span>",
    "right \u202e to left \u200f\u05d0\u05d1\u05d2 and back",
    "\x1b[31mred\x07 \x00 nul",
    "日本語 👩‍👩‍👧 naïve\n\n\tindented\r\nend",
)


@pytest.fixture
def corpus(tmp_path: Path, build_corpus: Callable[..., Path]) -> Corpus:
    """Documents that try to break a page, ids with masks, scores of every other token."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in HOSTILE))
    ids = tmp_path / "ids.jsonl"
    rows = [{"ids": list(range(40, 100)), "mask": [0] * 20 + [1] * 40} for _ in range(3)]
    ids.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = build_corpus(
        f"words={texts}", f"masked={ids}", fields_of={"masked": Fields(ids="ids", loss_mask="mask")}
    )
    pack(folder, seq_len=256)
    corpus = open_corpus(folder)
    write_scores(
        corpus,
        lambda shard: np.where(np.arange(shard.num_tokens) % 2, 6.0, 0.1),
        name="base",
        measure="shannon",
        model="every-other",
        seq_len=256,
    )
    return corpus


def write_drops(corpus: Corpus, path: Path, *, dropped: list[int]) -> Path:
    index = corpus.open_pack(256)
    sample = {"sample": 0, "step": 3, "gamma": 0.25, "threshold_nats": 0.1, "dropped": dropped}
    content = {
        "pack": index.fingerprint,
        "split": "train",
        "seq_len": 256,
        "epoch": 2,
        "scores": "base",
        "where": "input",
        "quantile": 0.5,
        "samples": [sample],
    }
    path.write_text(json.dumps(content))
    return path


def test_every_token_has_its_text_and_together_they_are_the_document(
    bpe_folder: Path, unigram_folder: Path, tricky: tuple[str, ...]
) -> None:
    for folder in (bpe_folder, unigram_folder):
        tokenizer = load_tokenizer(folder)
        for text in tricky[:-1]:
            ids = tokenizer.encode([text])[0]
            texts = texts_of(ids, tokenizer)
            assert len(texts) == len(ids)
            assert "".join(texts) == tokenizer.decode(ids.tolist())


def test_a_page_shows_tokens_entropies_masks_drops_and_padding(
    corpus: Corpus, tmp_path: Path, run_cli: Cli
) -> None:
    drops = write_drops(corpus, tmp_path / "drops.json", dropped=[3, 5])
    out = tmp_path / "page.html"
    flags = ("--seq-len", 256, "--drops", drops, "--html", out)
    code, _, error = run_cli("inspect", corpus.folder, *flags)
    assert code == 0, error
    page = out.read_text()
    assert "http" not in page.replace("http-equiv", "")  # nothing to fetch
    built = built_page(out, folder=tmp_path)
    sample = corpus.open_pack(256).sample(0)
    tokens = re.findall(r'<span class="(t[^"]*)" title="([^"]*)"', built)
    assert len(tokens) == sample.num_tokens
    dropped = [i for i, (classes, _) in enumerate(tokens) if "d" in classes.split()]
    assert dropped == [3, 5]
    for i, (_, title) in enumerate(tokens):
        assert title.startswith(f"token {i}, id {sample.ids[i]}, ")
    coloured = [any(name.startswith("e") for name in classes.split()) for classes, _ in tokens]
    assert coloured == (sample.position_ids[: sample.num_tokens] > 0).tolist()
    assert "epoch 2: input, the lowest 50% of each step" in built
    assert f"padding: {256 - sample.num_tokens:,} tokens" in built
    assert built.count("<section") == len(corpus.open_pack(256).pieces(0))


def test_text_of_a_corpus_stays_text(corpus: Corpus, tmp_path: Path, run_cli: Cli) -> None:
    out = tmp_path / "page.html"
    assert run_cli("inspect", corpus.folder, "--sample", 0, 1, 2, 3, "--html", out)[0] == 0
    built = built_page(out, folder=tmp_path)
    assert (
        "gone" not in re.sub(r"'gone'|&#x27;gone&#x27;", "", unescape(built)).split("</style>")[0]
    )
    assert built.count("<script>") == 1  # ours
    assert "<section" in built  # the page was not replaced by the document's script
    assert "\x1b" not in built and "\u202e" not in built
    texts = re.findall(r"<bdi>(.*?)</bdi>", built, flags=re.DOTALL)
    shown = unescape(re.sub(r"<[^>]*>", "", "".join(texts)))
    assert "<script>document.body.innerHTML" in shown


def test_masked_tokens_are_marked(corpus: Corpus, tmp_path: Path, run_cli: Cli) -> None:
    out = tmp_path / "page.html"
    first = corpus.domain_documents("train")["masked"].start
    assert run_cli("inspect", corpus.folder, "--sample", first, "--html", out)[0] == 0
    classes = re.findall(r'<span class="(t[^"]*)"', out.read_text())
    assert ["m" in found.split() for found in classes] == [True] * 20 + [False] * 40
    assert "60 tokens, 40 in the loss" in out.read_text()


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("is_dark", [False, True])
def test_a_browser_shows_entropies_in_the_colours_of_the_legend(
    corpus: Corpus, tmp_path: Path, run_cli: Cli, width: int, is_dark: bool
) -> None:
    out = tmp_path / "page.html"
    run_cli("inspect", corpus.folder, "--seq-len", 256, "--scores", "base", "--html", out)
    image = picture(out, folder=tmp_path, width=width, is_dark=is_dark)
    assert image.shape == (900, width, 3)
    colours = css_colours(dark=is_dark)
    # Half of the tokens are sure, half unsure; the legend alone is far below this.
    for colour in (colours[0], colours[-1]):
        assert share_of_colour(image, colour) > 0.004
    assert (image.mean() < 0.5) == is_dark
    # On a phone nothing runs out of the window: the right margin is the page's own colour.
    assert image[:, -4:].std() < 0.02


def test_a_terminal_shows_entropies_only_when_asked_or_able(
    corpus: Corpus, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("inspect", corpus.folder, "--seq-len", 256, "--scores", "base")
    assert "\x1b" not in run_cli(*arguments)[1]
    coloured = run_cli(*arguments, "--color", "always")[1]
    assert "\x1b[30;48;5;" in coloured and "nats or more" in coloured
    assert "\x1b[31m" not in coloured  # of the document, not ours
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "\x1b[30;48;5;" in run_cli(*arguments)[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in run_cli(*arguments)[1]


def test_drops_of_another_pack_or_sample_are_refused(
    corpus: Corpus, tmp_path: Path, run_cli: Cli
) -> None:
    drops = write_drops(corpus, tmp_path / "drops.json", dropped=[1])
    pack(corpus.folder, seq_len=32)
    for flags, message in (
        (("--seq-len", 32), "made for train samples of 256 tokens; show the same unchanged pack"),
        ((), "made for train samples of 256 tokens"),
        (("--seq-len", 256, "--sample", 1), "drops.json covers samples 0"),
    ):
        code, _, error = run_cli("inspect", corpus.folder, "--drops", drops, *flags)
        assert code == 2
        assert message in error
    drops.write_text('{"pack": 1}')
    code, _, error = run_cli("inspect", corpus.folder, "--seq-len", 256, "--drops", drops)
    assert code == 2 and "not a valid record of `python -m training preview`" in error
