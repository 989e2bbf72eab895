"""Makes of an exported text model the checkpoint of images and text that it is a part of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from training.checkpoints.tokenizer_files import read_object
from training.model.multimodal import WEIGHT_FILES, name_rules, text_name, without_report
from training.model.special_ids import SPECIAL_KEYS

_CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_OTHER_FILES = "*processor*.json"
_WHOLE = "whole"
_EMBEDDING, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


def restore_parts(folder: Path, base: Path) -> None:
    """Put the weights of the text model in `folder` into copies of the base's files.

    Args:
        folder: an export of the text model alone; becomes one of the whole.
        base: the checkpoint that training began from.

    Raises:
        ValueError: when weights have no place there, or are others when all is loaded again.
    """
    # in files experts may be apart that are one weight in memory
    text = _in_memory(folder)
    files = [load_file(path) for path in folder.glob(WEIGHT_FILES)]
    trained = {text_name(name): weight for file in files for name, weight in file.items()}
    whole = folder / _WHOLE
    whole.mkdir()
    left = set(trained)
    for path in sorted(base.glob(WEIGHT_FILES)):
        left -= _write_file(path, whole / path.name, trained)
    if left:
        raise ValueError(
            f"export: {base} has no place for {len(left)} trained weights, among them "
            f"{sorted(left)[:3]}; nothing was exported"
        )
    for path in [*folder.glob(WEIGHT_FILES), folder / _INDEX]:
        path.unlink(missing_ok=True)
    for path in whole.iterdir():
        path.rename(folder / path.name)
    whole.rmdir()
    for path in [base / _INDEX, *base.glob(_OTHER_FILES)]:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    _write_config(folder, base)
    _compare(folder, base, text)


def _in_memory(folder: Path) -> dict[str, Tensor]:
    """Of a text model, whatever its files call its weights."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    rules = {"config": config, "key_mapping": name_rules(config)}
    with without_report():
        text = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", trust_remote_code=False, **rules
        )
    return {text_name(name): weight for name, weight in text.state_dict().items()}


def _write_file(source: Path, target: Path, trained: dict[str, Tensor]) -> set[str]:
    """A file with its own names, and the names of the trained weights that are now in it."""
    tensors, placed = {}, set()
    with safe_open(source, "pt") as file:
        for name in file.keys():  # noqa: SIM118  # it is no mapping
            own = _trained_name(name, trained)
            tensors[name] = file.get_tensor(name) if own is None else trained[own].contiguous()
            placed |= set() if own is None else {own}
        save_file(_apart(tensors), target, metadata=file.metadata() or {"format": "pt"})
    return placed


def _trained_name(name: str, trained: dict[str, Tensor]) -> str | None:
    own = text_name(name)
    if own == _OUTPUT and own not in trained:  # tied, and yet in the files
        own = _EMBEDDING
    return own if own in trained else None


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses two names of the same memory."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return tensors


def _write_config(folder: Path, base: Path) -> None:
    """The base's own, with what training may have changed in its text part."""
    text, content = read_object(folder / _CONFIG), read_object(base / _CONFIG)
    part = content["text_config"]
    for key in ("vocab_size", *SPECIAL_KEYS):
        for one in (part, content):
            if key in text and key in one:
                one[key] = text[key]
    part["vocab_size"] = text["vocab_size"]
    for one in (part, content):
        one |= {"dtype": text["dtype"], "torch_dtype": text["dtype"]}
    (folder / _CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _compare(folder: Path, base: Path, trained: dict[str, Tensor]) -> None:
    """Load it as what it was: trained weights, by their names in memory, and the base's others."""
    architecture = read_object(base / _CONFIG)["architectures"][0]
    of_whole: Any = getattr(transformers, architecture)
    again = of_whole.from_pretrained(folder, dtype="auto")
    found = again.state_dict()
    before = of_whole.from_pretrained(base, dtype=again.dtype).state_dict()
    different = []
    for name in found.keys() | before.keys():
        own = _trained_name(name, trained)
        expected = before.get(name) if own is None else trained[own]
        if name not in found or expected is None or not torch.equal(found[name], expected):
            different.append(name)
    if different:
        raise ValueError(
            f"export: as a {architecture} {len(different)} weights are others, among them "
            f"{sorted(different)[:3]}; nothing was exported"
        )
