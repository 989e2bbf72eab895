"""What tests of exports share: corpora of texts that are hard, and the folders made for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import AutoConfig, AutoTokenizer

from data_prep.build import build
from data_prep.build_options import BuildOptions
from data_prep.shards import Corpus, open_corpus
from data_prep.tokenizing.training import train_tokenizer
from training.checkpoints.model_folder import make_model_folder
from training.config.sections import Model

TEXTS = [
    Path(json.__file__).read_text(),
    Path(shutil.__file__).read_text()[:20_000],
    "650841823 and 1234567890\n\n\ttwo  spaces, 漢字かな, naïve Ünïcode ☃ 👩‍💻\r\n",
]
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def build_corpus(folder: Path, tokenizer: str | Path) -> Corpus:
    inputs = folder / "texts"
    inputs.mkdir(parents=True)
    for number, text in enumerate(TEXTS):
        (inputs / f"{number}.txt").write_text(text, newline="")
    options: dict[str, Any] = {"tokenizer": str(tokenizer), "on_loss": "count"}
    if tokenizer in ("bpe", "unigram"):
        options = {"train_tokenizer": tokenizer, "train_vocab_size": 600}
    out = folder / "corpus"
    build(BuildOptions(inputs=(inputs,), out=out, val_frac=0.0, num_workers=1, **options))
    return open_corpus(out)


def written(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def made(corpus: Corpus, folder: Path, *, pretrained: Path | None = None, **config: Any) -> Path:
    """The folder for a model of random weights, or of a folder's configuration."""
    model = Model(pretrained=str(pretrained)) if pretrained else Model(config=config)
    if pretrained:
        of_model = AutoConfig.from_pretrained(pretrained)
    else:
        of_model = AutoConfig.for_model(**{"vocab_size": corpus.vocab_size, **SIZES, **config})
    return written(make_model_folder(model, of_model, corpus, base=pretrained), folder)


def assert_it_gives_the_ids_of_the_corpus(folder: Path, corpus: Corpus, **options: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    specials = corpus.manifest.special_ids
    for number in range(corpus.num_documents()):
        ids = corpus.document(number).tolist()
        text = corpus.tokenizer.decode(ids[:-1])
        assert ids == [*tokenizer.encode(text), *specials.document_suffix]
        assert tokenizer.decode(ids[:-1]) == text


def train_bpe(folder: Path) -> Path:
    train_tokenizer(TEXTS, algorithm="bpe", vocab_size=600, to=folder)
    return folder


def train_sentencepiece(folder: Path, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = (line for text in TEXTS for line in text.split("\n"))
    with (folder / "tokenizer.model").open("wb") as writer:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=writer,
            vocab_size=700,
            hard_vocab_limit=False,
            minloglevel=2,
            **options,
        )
    return folder


LLAMA2 = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
