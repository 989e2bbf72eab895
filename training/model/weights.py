"""Weights of a pretrained folder against the model that is to load them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.utils import logging

from training.config.sections import Model

_SHOWN = 4


def find_other_weights(model: Model, config: PretrainedConfig) -> str | None:
    """Names and shapes, by transformers' own rules of what is tied or may be left out.

    Under ZeRO-3 transformers itself looks for none of it and starts from random weights. No number
    is kept: the model that is loaded for this has no memory.

    Returns:
        What is missing, left over or of another shape, in a sentence; None where all fits, for a
        model from scratch, and for one of the hub that is not here yet: the other ranks would wait
        for the download.
    """
    if model.pretrained is None:
        return None
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # it may outlive the engine that it was made for
    is_folder = Path(model.pretrained).is_dir()
    with _quiet_transformers():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                model.pretrained,
                config=copy.deepcopy(config),
                trust_remote_code=model.trust_remote_code,
                local_files_only=not is_folder,
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except Exception as error:  # of many kinds: safetensors, torch, quantizers
            if isinstance(error, OSError) and not is_folder:
                return None
            return f"model.pretrained {model.pretrained}: {' '.join(str(error).split())}"
    found = loaded[1]
    shapes = [
        f"{name} has {list(here)} instead of {list(wanted)}"
        for name, here, wanted in found["mismatched_keys"]
    ]
    parts = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (
            ("missing", found["missing_keys"]),
            ("that this model has no place for", found["unexpected_keys"]),
            ("of another shape", shapes),
        )
        if names
    ]
    if not parts:
        return None
    return (
        f"model.pretrained {model.pretrained}: its weights are not those of this model "
        f"({'; '.join(parts)}); is the folder another model's, or incomplete?"
    )


def find_non_finite(model: nn.Module) -> str | None:
    """NaN or infinity in this rank's part of the weights, in a sentence; None for neither."""
    names = [
        name.removeprefix("lm.")
        for name, parameter in model.named_parameters()
        if not bool(torch.isfinite(parameter.ds_tensor).all())  # type: ignore[attr-defined]
    ]
    if not names:
        return None
    return f"model.pretrained: NaN or infinity in {len(names)} weights: {_some(names)}"


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Its report is a table of many lines."""
    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()
