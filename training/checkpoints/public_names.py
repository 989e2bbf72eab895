"""What an export names: nothing of the machine that wrote it, and its base as others find it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from common.checksum import FileRecord, record_file
from training.checkpoints.manifest import CARD, MANIFEST, read_manifest, write_manifest
from training.checkpoints.tokenizer_files import read_object

ADAPTER_CONFIG = "adapter_config.json"
BASE_OF_ADAPTER = "base_model_name_or_path"
RANDOM_WEIGHTS = "random weights"
"""In the place of a base, in a card."""
_SETTINGS = ("*config.json", "special_tokens_map.json")
_NOTES = ("_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file")
"""Where a program found what it loaded, as older ones wrote into settings; nobody reads them."""
_PLACE = re.compile(r"(~[\w.-]*[/\\]|[A-Za-z]:[/\\]|file:/|\\\\|/+[^/\\\n{}<>]+/)[^\n{}<>]+")
"""A path of a folder or a file, and no template or token."""
_BEGAN_FROM = re.compile(r"^\| began from \| (.*) \|$", re.MULTILINE)
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)


def is_of_hub(source: str) -> bool:
    """Whether it can only be a name there: a folder may be gone, or relative to another one."""
    try:
        validate_repo_id(source)
        return not Path(source).exists()
    except (HFValidationError, OSError):
        return False


def public_name(source: str) -> str:
    """A name of the hub as it is; of a file or folder the last part: where it lay is private."""
    return source if is_of_hub(source) else PureWindowsPath(source).name or "a local folder"


def drop_notes(folder: Path) -> None:
    """Take from the settings of an export where the files of the base and its tokenizer lay."""
    for path in _settings_of(folder):
        content = read_object(path)
        if (kept := _without_notes(content)) != content:
            path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def find_place(folder: Path) -> str | None:
    """What in an export's settings names a place of this machine, as a sentence; None if nothing.

    The base of an adapter is left to `local_base`.
    """
    for path in _settings_of(folder):
        for key, value in _texts(read_object(path)):
            is_base = path.name == ADAPTER_CONFIG and key == BASE_OF_ADAPTER
            if not is_base and _PLACE.fullmatch(value):
                return (
                    f"{path.name}: {key} names a place of this machine, {value}: export again, or "
                    "take it out where the model began from, and export then"
                )
    return None


def local_base(folder: Path) -> str | None:
    """The base of an adapter, if only this machine can have it under that name."""
    config = folder / ADAPTER_CONFIG
    name = read_object(config).get(BASE_OF_ADAPTER) if config.is_file() else None
    return name if isinstance(name, str) and not is_of_hub(name) else None


def name_base(folder: Path, base: str, *, to: Path) -> dict[str, Path]:
    """Write to `to` the files of an export that change when its base is called `base`.

    Returns:
        Them by their names in the export: the adapter's configuration, the card and the manifest.

    Raises:
        ValueError: for a model that began from random weights.
    """
    changed: dict[str, Path] = {}
    if (folder / ADAPTER_CONFIG).is_file():
        content = read_object(folder / ADAPTER_CONFIG) | {BASE_OF_ADAPTER: base}
        changed[ADAPTER_CONFIG] = to / ADAPTER_CONFIG
        changed[ADAPTER_CONFIG].write_text(json.dumps(content, indent=2), encoding="utf-8")
    if (folder / CARD).is_file():
        changed[CARD] = to / CARD
        card = _card_with_base((folder / CARD).read_text(encoding="utf-8"), base)
        changed[CARD].write_text(card, encoding="utf-8")
    manifest = read_manifest(folder)
    files = {name: FileRecord(**record) for name, record in manifest["files"].items()}
    files |= {name: record_file(path) for name, path in changed.items()}
    for name in files:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
    write_manifest(to, manifest, files=files)
    return changed | {MANIFEST: to / MANIFEST}


def card_front(text: str) -> dict[str, Any]:
    """What a card says of itself to machines; nothing where it has none that can be read."""
    try:
        found = _FRONT.match(text)
        content = yaml.safe_load(found[1]) if found else {}
    except (ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _card_with_base(card: str, base: str) -> str:
    began = _BEGAN_FROM.search(card)
    if began and began[1] == RANDOM_WEIGHTS:
        raise ValueError(f"--base {base}: this model has no base, it began from random weights")
    front = yaml.safe_dump(card_front(card) | {"base_model": base}, sort_keys=False)
    rest = _BEGAN_FROM.sub(lambda _: f"| began from | {base} |", _FRONT.sub("", card))
    return f"---\n{front}---\n{rest}"


def _without_notes(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_notes(content[key]) for key in content if key not in _NOTES}
    return [_without_notes(each) for each in content] if isinstance(content, list) else content


def _settings_of(folder: Path) -> list[Path]:
    return sorted({path for pattern in _SETTINGS for path in folder.glob(pattern)})


def _texts(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text within JSON, with the nearest key above it."""
    if isinstance(content, str):
        yield key, content
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from _texts(value, name)
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value, key)
