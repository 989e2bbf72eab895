"""What ids spell: every lost character is found, and nothing that is whole is suspected."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from data_prep.tokenizing.round_trip import HuggingFaceRoundTrip
from data_prep.tokenizing.spelling import Loss, changes_of, rewritten
from data_prep.tokenizing.tokenizer import HuggingFaceTokenizer, load_tokenizer
from tests.data_prep.small_tokenizers import PLAIN, character_bpe, loss_of_text, saved


def test_a_byte_level_vocabulary_without_some_bytes_is_found_out(tmp_path: Path) -> None:
    """BPE trained without `initial_alphabet` knows only the bytes that it saw."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=[], show_progress=False)
    tokenizer.train_from_iterator([PLAIN] * 20, trainer)
    folder = saved(tokenizer, tmp_path / "t")
    assert loss_of_text(folder, PLAIN) is None
    assert loss_of_text(folder, "nicé wörds") == Loss(num_chars=2, first=3, chars="éö")


def test_what_the_split_into_words_throws_away_is_lost_unless_it_is_blank(tmp_path: Path) -> None:
    tokenizer = character_bpe(unk_token="<unk>")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert loss_of_text(saved(tokenizer, tmp_path / "blank"), f" {PLAIN} \n ") is None
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[^a-z]"), "removed")
    folder = saved(tokenizer, tmp_path / "letters")
    assert loss_of_text(folder, "words, 1\nword") == Loss(num_chars=2, first=5, chars=",1")
    assert loss_of_text(folder, "☃☃ words,") == Loss(num_chars=3, first=0, chars="☃,")


_loaded = lru_cache(load_tokenizer)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=100), data=st.data())
@settings(max_examples=200, deadline=None)
def test_any_changed_id_is_noticed_and_no_whole_text_is_suspected(
    bpe_folder: Path, unigram_folder: Path, text: str, data: st.DataObject
) -> None:
    for folder in (bpe_folder, unigram_folder):
        tokenizer = _loaded(folder)
        ids = tokenizer.encode([text])[0]
        assert tokenizer.round_trip.loss(text, ids) is None
        if len(ids):
            place = data.draw(st.integers(0, len(ids) - 1))
            changed = ids.copy()
            changed[place] = (changed[place] + 1) % tokenizer.vocab_size
            assert tokenizer.round_trip.loss(text, changed) is not None
            assert tokenizer.round_trip.loss(text, np.delete(ids, place)) is not None


def _silent(kind: str) -> HuggingFaceRoundTrip:
    """A tokenizer without unknown token and without all bytes."""
    tokenizer = Tokenizer(models.BPE(**({"end_of_word_suffix": "</w>"} if kind == "marks" else {})))
    tokenizer.pre_tokenizer = {
        "letters": pre_tokenizers.Metaspace(),
        "words": pre_tokenizers.WhitespaceSplit(),
        "marks": pre_tokenizers.WhitespaceSplit(),
        "bytes": pre_tokenizers.ByteLevel(),
        "removes": pre_tokenizers.Split(Regex("b"), "removed"),
        "whole": None,
    }[kind]
    tokenizer.normalizer = normalizers.Lowercase()
    marks = {"end_of_word_suffix": "</w>"} if kind == "marks" else {}
    trainer = trainers.BpeTrainer(vocab_size=30, special_tokens=[], show_progress=False, **marks)
    tokenizer.train_from_iterator(["a ab abc caba é"] * 5, trainer)
    return HuggingFaceRoundTrip(tokenizer, settings=json.loads(tokenizer.to_str()))


_silents = lru_cache(_silent)


@pytest.mark.parametrize("kind", ["letters", "words", "marks", "bytes", "removes", "whole"])
@given(text=st.text(st.sampled_from("abcABC éx\n\u2581\u3000☃"), max_size=12))
@settings(max_examples=100, deadline=None)
def test_no_loss_without_a_trace_goes_unsuspected(kind: str, text: str) -> None:
    round_trip = _silents(kind)
    ids = np.array(round_trip._backend.encode(text).ids, dtype=np.uint32)
    loss = round_trip.loss(text, ids)
    assert loss is None or round_trip.is_suspect(text, ids)
    lost = {"letters": "☃x", "words": "☃x", "bytes": "☃x", "removes": "☃xb"}.get(kind)
    if lost:
        letters = "".join(set(text.lower()) & set(lost))
        assert (loss is not None) >= bool(letters)


@pytest.mark.parametrize("normalized", [False, True])
def test_tokens_cut_out_of_a_text_are_no_loss(tmp_path: Path, normalized: bool) -> None:
    """With the blanks that they take from beside them; what is lost elsewhere is still found."""
    tokenizer = character_bpe(unk_token="<unk>")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.add_tokens([AddedToken("<tool>", rstrip=True, lstrip=True, normalized=normalized)])
    folder = saved(tokenizer, tmp_path / "t")
    text = "Words  <tool>  words<tool>unicode"
    assert (
        load_tokenizer(folder).encode([text])[0].tolist().count(tokenizer.token_to_id("<tool>"))
        == 2
    )
    assert loss_of_text(folder, text) is None
    assert loss_of_text(folder, "<tool>") is None
    loss = loss_of_text(folder, "Words  <tool>  w☃rds<tool>unicode☃")
    assert loss is not None
    assert (loss.num_chars, loss.chars) == (2, "☃")


def test_special_tokens_written_in_a_text_are_spelt_as_text(
    tmp_path: Path, bpe_folder: Path
) -> None:
    assert loss_of_text(bpe_folder, "a <eos> b <eos>") is None
    folder = saved(character_bpe(unk_token="<unk>"), tmp_path / "t")
    loss = loss_of_text(folder, "words <unk>")
    assert loss is not None and loss.num_chars == 3  # "<", "k" and ">" have no token


def test_bytes_written_as_text_are_not_taken_for_bytes(tmp_path: Path) -> None:
    """Unigram of tokenizers finds "<0x0A>" within a text, and gives the id of the byte."""
    letters = [(letter, -2.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    names = [(f"<0x{byte:02X}>", -5.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *letters, *names], 0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    folder = saved(tokenizer, tmp_path / "t")
    assert loss_of_text(folder, "abc ☃ def") is None
    text = "x <0x0A> y"
    ids = load_tokenizer(folder).encode([text])[0].tolist()
    assert (loss_of_text(folder, text) is None) == (tokenizer.token_to_id("<0x0A>") not in ids)


def test_dropout_of_merges_is_switched_off(tmp_path: Path) -> None:
    """Else the same document would get other ids each time, and be checked against others."""
    tokenizer = character_bpe()
    tokenizer.model.dropout = 0.5
    folder = saved(tokenizer, tmp_path / "t")
    ours = HuggingFaceTokenizer(folder)
    assert len({tuple(ours.encode([PLAIN])[0].tolist()) for _ in range(20)}) == 1


def _saved_with(tmp_path: Path, **model: Any) -> Path:
    folder = saved(character_bpe(), tmp_path / "t")
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["model"] |= model
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    return folder


def test_two_tokens_of_one_id_are_refused(tmp_path: Path) -> None:
    vocab = character_bpe().get_vocab()
    folder = _saved_with(tmp_path, vocab={**vocab, "w": vocab["u"]})
    with pytest.raises(ValueError, match=f"tokens 'u' and 'w' both have the id {vocab['u']}; "):
        load_tokenizer(folder)


def test_merges_without_the_prefix_that_the_model_names_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = _saved_with(tmp_path, continuing_subword_prefix="##")
    with pytest.raises(ValueError, match=r"_prefix is '##', but the second part of the merge \['"):
        load_tokenizer(folder)
    assert "panicked" not in capfd.readouterr().err


def test_a_panic_of_the_library_is_one_sentence(tmp_path: Path) -> None:
    folder = _saved_with(tmp_path, continuing_subword_prefix="##")
    with (
        patch("data_prep.tokenizing.tokenizer._check_prefix"),
        pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer: "),
    ):
        load_tokenizer(folder)


def test_an_eos_that_the_tokenizer_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = saved(character_bpe(), tmp_path / "t", eos_token="<|im_end|>")
    with pytest.raises(
        ValueError, match=r"names the EOS '<\|im_end\|>', which tokenizer.json does"
    ):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("normalizer", "note", "loss"),
    [
        (
            normalizers.Replace("e", ""),
            "characters are dropped or replaced: 'e'",
            Loss(num_chars=2, first=7, chars="e"),
        ),
        (
            normalizers.Replace(Regex("[0-9]+"), "0"),
            "characters are dropped or replaced: '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'",
            Loss(num_chars=3, first=0, chars="26"),
        ),
        (
            normalizers.Prepend("X"),
            "characters are put in: 'X'",
            Loss(num_chars=1, first=0, chars="2"),
        ),
    ],
)
def test_what_a_normaliser_does_to_ordinary_characters_is_lost_and_named(
    bpe_folder: Path, tmp_path: Path, normalizer: normalizers.Normalizer, note: str, loss: Loss
) -> None:
    backend = Tokenizer.from_file(str(bpe_folder / "tokenizer.json"))
    backend.normalizer = normalizers.Sequence([normalizer, normalizers.NFC()])
    folder = saved(backend, tmp_path / "t")
    assert loss_of_text(folder, "2026 \u00e9tend\u00fce E") == loss
    assert changes_of(load_tokenizer(folder).round_trip.prepared) == (note,)


@given(text=st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=30))
@example(text="\u1fb3 \u0390 \u0130 \u03c2 \ufb01 \u00df \u0345 \uff5e")
@settings(max_examples=300, deadline=None)
def test_case_accents_forms_and_white_space_are_changes_and_no_loss(text: str) -> None:
    lower = [normalizers.NFKD(), normalizers.Lowercase(), normalizers.Nmt()]
    blanks = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    for steps in (lower, [*lower[::-1], *blanks], [normalizers.NFC(), normalizers.Strip()]):
        normalised = normalizers.Sequence(steps).normalize_str(text)
        assert rewritten(text, normalised=normalised) is None


def test_a_token_that_eats_the_blanks_beside_it_is_named(tmp_path: Path) -> None:
    tokenizer = character_bpe(unk_token="<unk>")
    tokenizer.add_tokens([AddedToken("def", rstrip=True), AddedToken("words")])
    tokenizer.add_special_tokens([AddedToken("<end>", lstrip=True)])  # text to a build
    way = load_tokenizer(saved(tokenizer, tmp_path / "t")).round_trip
    assert changes_of(way.prepared, eats_blanks=way.eats_blanks) == (
        "blanks beside 'def' are dropped",
    )


def test_changes_of_a_normaliser_are_named(bpe_folder: Path) -> None:
    assert changes_of(load_tokenizer(bpe_folder).round_trip.prepared) == ()
    backend = character_bpe()
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    changed = HuggingFaceRoundTrip(backend, settings=json.loads(backend.to_str()))
    assert changes_of(changed.prepared) == (
        "line ends and tabs become blanks",
        "several blanks become one",
        "blanks at the end are dropped",
        "capitals become small letters",
        "compatible characters become one (NFKC)",
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    changed = HuggingFaceRoundTrip(backend, settings=json.loads(backend.to_str()))
    assert changes_of(changed.prepared) == (
        "white space only separates words",
        "capitals become small letters",
        "accents are dropped",
        "control characters are dropped",
    )
