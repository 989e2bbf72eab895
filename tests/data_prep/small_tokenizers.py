"""Small tokenizers that lose characters, or do other things that real ones do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_prep.tokenizing.gigatoken_path import NEWER_CHARACTERS, GigatokenPath
from data_prep.tokenizing.spelling import Loss
from data_prep.tokenizing.tokenizer import load_tokenizer

LOST = "Ünïcode ☃ and 水車"
PLAIN = "unicode and other words"
# Characters that both libraries know.
ANY_TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters=NEWER_CHARACTERS), max_size=120
)


def path_of(settings: dict[str, Any]) -> GigatokenPath:
    """The fast path of a `tokenizer.json`."""
    return GigatokenPath.of(settings, backend=Tokenizer.from_str(json.dumps(settings)))


def saved(tokenizer: Tokenizer, folder: Path, **names: str) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names})
    )
    return folder


def character_bpe(**options: Any) -> Tokenizer:
    """BPE over characters of plain text, as in many a tutorial."""
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<eos>", *([options["unk_token"]] if "unk_token" in options else [])]
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([PLAIN] * 20, trainer)
    return tokenizer


def loss_of_text(folder: Path, text: str) -> Loss | None:
    tokenizer = load_tokenizer(folder)
    return tokenizer.round_trip.loss(text, tokenizer.encode([text])[0])
