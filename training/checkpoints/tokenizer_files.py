"""The tokenizer of an export: the corpus's files, as transformers gives the corpus's ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from training.config.sections import Model
from training.model.tokenizer_check import ExpectedTokens, find_other_tokens, load_tokenizer

SETTINGS = "tokenizer_config.json"
_PLAIN_CLASS = "PreTrainedTokenizerFast"
"""Does what the files say, for tokenizer.json and sentencepiece models alike; a class named after
a model has rules of its own."""
_OWN_MODULE, _OWN_CLASS = "plain_tokenizer", "PlainTokenizer"
_OWN_CODE = f"""\
from transformers import {_PLAIN_CLASS}


class {_OWN_CLASS}({_PLAIN_CLASS}):
    pass
"""


def write_tokenizer(folder: Path, source: Path, *, model: Model, expected: ExpectedTokens) -> Any:
    """Copy the files of a tokenizer, byte for byte, next to a model's configuration.

    If transformers makes other ids of them, by the rules of the class that they name, or that
    belongs to the model, the plain class is named in `tokenizer_config.json`. For a few types of
    model, qwen2 among them, transformers takes no notice of that unless the folder has code of its
    own: these get a class that adds nothing to the plain one. Nobody needs to trust it: without
    `trust_remote_code` transformers then takes the plain one.

    Args:
        folder: has a `config.json` already, from which transformers may take the class.

    Returns:
        The tokenizer, as transformers loads it from there.

    Raises:
        ValueError: when none of it gives the ids of the corpus.
    """
    shutil.copytree(source, folder, dirs_exist_ok=True)
    tokenizer, _ = _load(folder, model=model, expected=expected)
    if tokenizer is not None:
        return tokenizer
    for has_own_class in (False, True):
        _set_plain_class(folder, expected=expected, has_own_class=has_own_class)
        tokenizer, mistake = _load(folder, model=model, expected=expected)
        if tokenizer is not None:
            return tokenizer
    raise ValueError(
        f"data.corpus: transformers does not use the tokenizer {source} as the corpus does, so an "
        f"exported model would not work: {mistake}. Save it with transformers "
        "(AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)), and build the corpus with "
        "--tokenizer FOLDER"
    )


def _load(folder: Path, *, model: Model, expected: ExpectedTokens) -> tuple[Any, str | None]:
    """The tokenizer, if it gives the ids of the corpus, or else what it does."""
    try:
        tokenizer = load_tokenizer(folder, model)
    except ValueError as error:
        return None, str(error)
    mistake = find_other_tokens(tokenizer, expected)
    return (None if mistake else tokenizer), mistake


def _set_plain_class(folder: Path, *, expected: ExpectedTokens, has_own_class: bool) -> None:
    path = folder / SETTINGS
    settings = read_object(path) if path.is_file() else {}
    for role, (token, _) in expected.specials.items():
        settings.setdefault(f"{role}_token", token)
    settings["tokenizer_class"] = _PLAIN_CLASS
    if has_own_class:
        settings["auto_map"] = {"AutoTokenizer": [None, f"{_OWN_MODULE}.{_OWN_CLASS}"]}
        (folder / f"{_OWN_MODULE}.py").write_text(_OWN_CODE, encoding="utf-8")
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON of one of a model's files.

    Raises:
        ValueError: when it is none, or not an object.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"model: {path.name}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"model: {path.name}: expected an object, found {type(content).__name__}")
    return content
