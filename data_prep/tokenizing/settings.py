"""Names of a tokenizer folder's files, and its settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HF_NAME = "tokenizer.json"
SENTENCEPIECE_NAME = "tokenizer.model"
SETTINGS_NAME = "tokenizer_config.json"
ADDED_NAME = "added_tokens.json"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; {} if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object, found {type(content).__name__}")
    return content


def special_names(folder: Path) -> dict[str, str]:
    """The text of each special token that the settings name: {"eos_token": "</s>"}."""
    settings = {
        **read_json(folder / "special_tokens_map.json"),
        **read_json(folder / SETTINGS_NAME),
    }
    names = {role: _content(name) for role, name in settings.items() if role.endswith("_token")}
    return {role: name for role, name in names.items() if name is not None}


def _content(name: Any) -> str | None:
    content = name.get("content") if isinstance(name, dict) else name
    return content if isinstance(content, str) else None
