"""A copy of a pretrained model with rows for tokens that were added to its tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from training.checkpoints.files import staged_folder
from training.checkpoints.manifest import CARD
from training.checkpoints.model_folder import FILE_SIZE, GENERATION, LICENCES
from training.config.sections import Model
from training.model.multimodal import is_part

MULTIPLE = 64
"""Rows of the new embedding: matrices of such sizes are fastest."""
_SEED = 0


def add_tokens(base: Path, *, tokenizer: Path, out: Path) -> int:
    """Write the base with as many rows as the tokenizer has ids, on the CPU; nothing is downloaded.

    New rows are drawn by transformers around the mean of the others (`mean_resizing`).

    Args:
        base: folder of a pretrained model.
        tokenizer: folder of its tokenizer with tokens added.
        out: a folder that does not exist.

    Returns:
        Rows of the new embedding.

    Raises:
        ValueError: for a tokenizer that gives old ids another meaning, or needs no new row.
    """
    if out.exists():
        raise ValueError(f"{out} exists; name a folder that does not")
    for folder in (base, tokenizer):
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
    if is_part(Model(pretrained=str(base))):
        raise ValueError(f"{base} is a model of more than text, whose tokens cannot be added to")
    num_ids = _num_ids(base, tokenizer)
    with staged_folder(out) as staging:
        lm = _load(base)
        rows = _num_rows(lm)
        if num_ids <= rows:
            raise ValueError(
                f"{base} has {rows} rows, enough for the {num_ids} ids of {tokenizer}: train it as "
                "it is"
            )
        before = {name: weight.clone() for name, weight in lm.state_dict().items()}
        torch.manual_seed(_SEED)
        lm.resize_token_embeddings(num_ids, pad_to_multiple_of=MULTIPLE, mean_resizing=True)
        lm.save_pretrained(staging, max_shard_size=FILE_SIZE)
        for pattern in (CARD, GENERATION, *LICENCES):
            for path in base.glob(pattern):
                shutil.copyfile(path, staging / path.name)
        _load_tokenizer(tokenizer).save_pretrained(staging)
        _compare(_load(staging).state_dict(), before)
        return _num_rows(lm)


def _num_rows(lm: PreTrainedModel) -> int:
    weight: Any = lm.get_input_embeddings().weight
    return len(weight)


def _load(folder: Path) -> PreTrainedModel:
    return _readable(
        lambda: AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False),
        folder,
    )


def _load_tokenizer(folder: Path) -> Any:
    return _readable(lambda: AutoTokenizer.from_pretrained(folder, trust_remote_code=False), folder)


def _readable(load: Callable[[], Any], folder: Path) -> Any:
    try:
        return load()
    except Exception as error:  # transformers raises errors of many kinds
        raise ValueError(f"{folder}: cannot be loaded: {' '.join(str(error).split())}") from None


def _num_ids(base: Path, tokenizer: Path) -> int:
    """Of the tokenizer, in which every token of the base has its id."""
    old, new = (_load_tokenizer(folder).get_vocab() for folder in (base, tokenizer))
    other = sorted(token for token, number in old.items() if new.get(token) != number)
    if other:
        raise ValueError(
            f"{tokenizer} is not the tokenizer of {base} with tokens added: {other[0]!r} has the "
            f"id {old[other[0]]} there and {new.get(other[0], 'none')} here"
        )
    return max(new.values()) + 1


def _compare(found: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    """Old weights and old rows are there bit by bit."""
    for name, weight in before.items():
        if not torch.equal(found[name][: len(weight)] if weight.ndim else found[name], weight):
            raise ValueError(f"{name} is another when it is loaded again; nothing was written")
