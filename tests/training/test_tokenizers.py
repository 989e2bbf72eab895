"""The corpus is of the tokenizer that the model was trained with, or nothing is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.build import build
from data_prep.build_options import BuildOptions
from data_prep.packing.pack import pack
from tests.training.model_folders import LLAMA2, train_sentencepiece
from tests.training.refusals import check, refused
from tests.training.short_runs import SEQUENCE_TOKENS
from tests.training.test_weights import unchanged, write_folder
from training.model.tokenizers import find_other_ids, find_pair

Content = dict[str, Any]


def changed(corpus: Path, folder: Path, change: Callable[[Content], None]) -> Path:
    """The corpus's tokenizer with a change, as a model's folder has it."""
    content = json.loads((corpus / "tokenizer" / "tokenizer.json").read_text())
    change(content)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content))
    return path


def swap_two_ids(content: Content) -> None:
    vocab = content["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.__getitem__)[300:302]
    vocab[first], vocab[second] = vocab[second], vocab[first]


def forget_the_newest_merge(content: Content) -> None:
    content["model"]["merges"].pop(0)


def split_digits(content: Content) -> None:
    digits = {"type": "Digits", "individual_digits": True}
    before = content["pre_tokenizer"]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, before]}


def pad(content: Content) -> None:
    content["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (swap_two_ids, "id 300 is "),
        (forget_the_newest_merge, "gives other ids than the model's"),
        (split_digits, "gives other ids than the model's"),
    ],
)
def test_another_tokenizer_is_named(small_corpus, tmp_path, change, words):
    kept = small_corpus / "tokenizer" / "tokenizer.json"
    message = find_other_ids(kept, changed(small_corpus, tmp_path, change))
    assert message is not None
    assert words in message
    assert message.endswith("build the corpus with --tokenizer of this model")


def test_truncation_that_someone_left_in_the_file_says_nothing_of_ids(small_corpus, tmp_path):
    kept = small_corpus / "tokenizer" / "tokenizer.json"
    assert find_other_ids(kept, changed(small_corpus, tmp_path, pad)) is None


def test_a_start_on_a_corpus_of_another_tokenizer_is_refused(small_corpus, tmp_path):
    folder = write_folder(tmp_path, unchanged)
    shutil.copy(small_corpus / "tokenizer" / "tokenizer.json", folder)
    check(small_corpus, model={"pretrained": str(folder)})
    changed(small_corpus, folder, swap_two_ids)
    message = refused(lambda: check(small_corpus, model={"pretrained": str(folder)}))
    assert message.startswith(
        f"data.corpus {small_corpus}: the corpus was tokenised by another tokenizer than the "
        "model's: id 300 is "
    )
    assert message.endswith(f"; build it with --tokenizer {folder}")


def test_the_runs_own_corpus_is_compared_with_the_model_before_others_with_it(
    small_corpus, tmp_path
):
    """Else the one that is right would have to be built again."""
    model = write_folder(tmp_path, unchanged)
    changed(small_corpus, model, swap_two_ids)
    (tmp_path / "text.txt").write_text("Other words. " * 3000)
    right = tmp_path / "right"
    build(BuildOptions(inputs=(tmp_path / "text.txt",), out=right, tokenizer=str(model)))
    pack(right, seq_len=SEQUENCE_TOKENS)
    beside = {"replay": {"corpus": str(right), "share": 0.1}}
    message = refused(lambda: check(small_corpus, model={"pretrained": str(model)}, **beside))
    assert message.startswith(f"data.corpus {small_corpus}: ")


def test_sentencepiece_models_are_compared_too(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        train_sentencepiece(folder, **LLAMA2)
    pair = find_pair(ours, str(theirs))
    assert pair == (ours / "tokenizer.model", theirs / "tokenizer.model")
    assert find_other_ids(*pair) is None
    train_sentencepiece(theirs, **LLAMA2, split_digits=True)
    message = find_other_ids(*pair)
    assert message is not None
    assert message.endswith("build the corpus with --tokenizer of this model")


def test_a_tokenizer_that_cannot_be_read_is_named(small_corpus, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    kept = small_corpus / "tokenizer" / "tokenizer.json"
    message = refused(lambda: find_other_ids(kept, tmp_path / "tokenizer.json"))
    assert message.startswith(f"{tmp_path}/tokenizer.json: not a tokenizer: ")
