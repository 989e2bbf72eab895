"""Where a recipe's model comes from: a folder, the hub or a kind that transformers knows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from transformers import CONFIG_MAPPING

from common.commands import command
from common.hints import did_you_mean
from training.config.load import KEPT_RECIPE
from training.config.sections import Model

_CONFIG = "config.json"


def refuse_unknown_source(model: Model) -> None:
    """Before transformers answers with a list of all architectures, or of naming rules."""
    if model.pretrained is not None:
        _refuse_other_folder(model.pretrained)
        return
    model_type = str((model.config or {})["model_type"])
    if model_type not in CONFIG_MAPPING:
        hint = did_you_mean(model_type, CONFIG_MAPPING.keys(), most=3)
        raise ValueError(f"model.config.model_type {model_type!r} is unknown to transformers{hint}")


def _refuse_other_folder(pretrained: str) -> None:
    folder = Path(pretrained)
    looks_local = pretrained.startswith(("/", ".", "~")) or pretrained.count("/") > 1
    if looks_local and not folder.is_dir():
        raise ValueError(f"model.pretrained: there is no folder {pretrained}")
    if not folder.is_dir() or (folder / _CONFIG).is_file():
        return
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"model.pretrained: {folder} is an adapter; merge it with its base first "
            f"({command('training export RUN --merge')})"
        )
    if (folder / KEPT_RECIPE).is_file():
        export = folder / "export"
        how = f"use {export}"
        if not (export / _CONFIG).is_file():
            merge = " --merge" if (export / "adapter_config.json").is_file() else ""
            how = f"export it with `{command(f'training export {folder}{merge}')}`"
        raise ValueError(f"model.pretrained: {folder} is a run, not a model: {how}")
    raise ValueError(
        f"model.pretrained: {folder} has no {_CONFIG}, so it is not a model's folder; name one "
        "that transformers has saved, or a model of the hub"
    )


@contextmanager
def without_retries_told(pretrained: str) -> Iterator[None]:
    """Without two lines for each of five attempts to reach the hub, where these are in vain.

    Of a model in the cache they say why the start takes longer.
    """
    log = logging.getLogger("huggingface_hub.utils._http")
    level = log.level
    if not _is_here(pretrained):
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def why_unread(model: Model, error: Exception) -> str:
    """In one line, why transformers could not read the configuration of a recipe's model."""
    missing = error.__cause__
    if model.pretrained is None or not isinstance(missing, LocalEntryNotFoundError):
        return f"model: {_in_a_line(error)}"
    reason = missing.__cause__
    why = "the hub cannot be reached"
    if constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE forbids to ask the hub"
    elif isinstance(reason, HfHubHTTPError):
        why = f"the hub does not give it: {_in_a_line(reason)}"
    elif reason is not None:
        why += f" ({_in_a_line(reason)})"
    return (
        f"model.pretrained {model.pretrained}: no folder of this name here, not in the hub's "
        f"cache, and {why}"
    )


def _is_here(pretrained: str) -> bool:
    if Path(pretrained).is_dir():
        return True
    return isinstance(try_to_load_from_cache(pretrained, _CONFIG), str)


def _in_a_line(error: BaseException) -> str:
    return " ".join(str(error).split())
