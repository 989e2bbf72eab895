"""Finds a tokenizer by name or path and copies its files next to the shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from common.checksum import record_file
from common.commands import command
from data_prep.manifest import MANIFEST_NAME, TokenizerFile
from data_prep.tokenizing.settings import HF_NAME, SENTENCEPIECE_NAME, SETTINGS_NAME

# What transformers reads to load a tokenizer; weights and model settings are not copied.
_TOKENIZER_FILES = (
    HF_NAME,
    SENTENCEPIECE_NAME,
    SETTINGS_NAME,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
_RECIPE_OF_A_RUN = "recipe.resolved.yaml"  # training's name for it, which cannot be imported here


def find_tokenizer(name_or_path: str) -> Path:
    """The folder or file of a tokenizer; a name on the hub is downloaded.

    Raises:
        ValueError: if there is none, with where it may be.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file() and path.suffix in (".json", ".model"):
        return path
    if path.exists() and not path.is_dir():
        raise ValueError(
            f"--tokenizer {name_or_path}: expected a folder, a tokenizer.json or a sentencepiece "
            ".model"
        )
    folder = path if path.is_dir() else _download(name_or_path)
    if not _has_tokenizer(folder):
        raise ValueError(f"--tokenizer {name_or_path}: {_why_none(folder)}")
    return folder


def copy_tokenizer(name_or_path: str, *, to: Path) -> None:
    """Copy the files of a tokenizer: a folder, `tokenizer.json`, `.model`, or a name on the hub."""
    path = find_tokenizer(name_or_path)
    to.mkdir()
    if path.is_dir():
        _copy_folder(path, to=to)
    else:
        # A tokenizer.json does not name EOS, and a .model not all of them; the settings next to
        # it do.
        _copy_folder(path.parent, to=to)
        (to / HF_NAME).unlink(missing_ok=True)
        shutil.copyfile(path, to / (HF_NAME if path.suffix == ".json" else SENTENCEPIECE_NAME))
    if (to / HF_NAME).is_file() and not (to / SETTINGS_NAME).is_file():
        # Without it transformers' AutoTokenizer does not know which class to use.
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (to / SETTINGS_NAME).write_text(json.dumps(settings) + "\n")


def as_given(message: str, *, copied: Path, name_or_path: str) -> str:
    """A message about a copied tokenizer, with the files named where the user has them."""
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        return message.replace(str(copied), name_or_path.rstrip("/"))
    name = HF_NAME if path.suffix == ".json" else SENTENCEPIECE_NAME
    return message.replace(str(copied / name), name_or_path).replace(str(copied), str(path.parent))


def describe_tokenizer_files(folder: Path) -> tuple[TokenizerFile, ...]:
    """Names within the folder, sizes and checksums."""
    return tuple(
        TokenizerFile(
            name=path.relative_to(folder).as_posix(),
            num_bytes=(found := record_file(path)).num_bytes,
            sha256=found.sha256,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (HF_NAME, SENTENCEPIECE_NAME))


def _why_none(folder: Path) -> str:
    """What a folder without a tokenizer is instead, and what to do."""
    if (folder / MANIFEST_NAME).is_file() and _has_tokenizer(folder / "tokenizer"):
        return f"is a corpus; its tokenizer is {folder / 'tokenizer'}"
    if (folder / _RECIPE_OF_A_RUN).is_file():
        if _has_tokenizer(folder / "export"):
            return f"is a run; its tokenizer is {folder / 'export'}"
        export = command(f"training export {folder}")
        return f"is a run; {export} writes its tokenizer to {folder / 'export'}"
    none = f"no {HF_NAME} and no {SENTENCEPIECE_NAME} in it"
    if any(next(folder.glob(pattern), None) for pattern in _TOKENIZER_FILES):
        return (
            f"{none}; convert the tokenizer with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    return f"{none}; give the folder or file of a tokenizer, or a name on the hub"


def _copy_folder(folder: Path, *, to: Path) -> None:
    for pattern in _TOKENIZER_FILES:
        for path in filter(Path.is_file, folder.glob(pattern)):
            target = to / path.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)


def _download(name: str) -> Path:
    """The tokenizer's files from the hub or its local cache; weights are not downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(_TOKENIZER_FILES)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"--tokenizer {name}: no such file or folder here, and not available from the hub "
            f"({reason})"
        ) from None
