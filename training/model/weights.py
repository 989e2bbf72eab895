"""Weights of a pretrained folder against the model that is to load them."""

from __future__ import annotations

import copy
import logging as python_logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from training.config.sections import Model
from training.model.adapter import base_weights
from training.model.multimodal import is_part, name_rules, text_name

_SHOWN = 4
_OF_TEXT = ("model.layers.", "lm_head.")


def find_other_weights(model: Model, config: PretrainedConfig) -> str | None:
    """Names and shapes, by transformers' own rules of what is tied or may be left out.

    Under ZeRO-3 transformers itself looks for none of it: it starts from random weights, and ties
    what it would otherwise leave apart. No number is kept, and none is read but those of tied
    weights that the files have twice: the model that is loaded for this has no memory.

    Returns:
        What is missing, left over, of another shape, or tied and yet different, in a sentence; None
        where all fits, for a model from scratch, and for one of the hub that is not here yet: the
        other ranks would wait for the download.
    """
    if model.pretrained is None:
        return None
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # it may outlive the engine that it was made for
    is_folder = Path(model.pretrained).is_dir()
    with _quiet_transformers():
        try:
            lm, found = _load(model, config, {"": "meta"})
            apart = _find_other_values(model, config, lm)
            has_more = is_part(model)
        except Exception as error:  # of many kinds: safetensors, torch, quantizers
            if isinstance(error, OSError) and not is_folder:
                return None
            return f"model.pretrained {model.pretrained}: {' '.join(str(error).split())}"
    shapes = [
        f"{name} has {list(here)} instead of {list(wanted)}"
        for name, here, wanted in found["mismatched_keys"]
    ]
    unexpected = [
        name
        for name in found["unexpected_keys"]
        if not has_more or text_name(name) != name or name.startswith(_OF_TEXT)
    ]
    parts = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (
            ("missing", found["missing_keys"]),
            ("that this model has no place for", unexpected),
            ("of another shape", shapes),
        )
        if names
    ]
    if not parts:
        return apart
    return (
        f"model.pretrained {model.pretrained}: its weights are not those of this model "
        f"({'; '.join(parts)}); is the folder another model's, or incomplete?"
    )


def _load(
    model: Model, config: PretrainedConfig, devices: dict[str, str]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, its modules on the devices named, and what transformers found of its weights."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(model.pretrained),
        config=copy.deepcopy(config),
        key_mapping=name_rules(config),
        trust_remote_code=model.trust_remote_code,
        local_files_only=not Path(str(model.pretrained)).is_dir(),
        device_map=devices,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    return loaded


def _find_other_values(model: Model, config: PretrainedConfig, lm: PreTrainedModel) -> str | None:
    """Weights that the configuration ties and the files have twice, with different numbers.

    transformers alone would then not tie them. Whether they are the same it tells only of weights
    that it reads, so these are.

    Args:
        lm: loaded without memory: in it transformers has tied all pairs but those that the files
            have twice, which it could not compare.
    """
    twice = {
        name: other
        for name, other in lm.all_tied_weights_keys.items()
        if lm.get_parameter_or_buffer(name) is not lm.get_parameter_or_buffer(other)
    }
    if not twice:
        return None
    modules = {name.rpartition(".")[0] for pair in twice.items() for name in pair}
    read, _ = _load(model, config, {"": "meta"} | dict.fromkeys(modules, "cpu"))
    for name, other in sorted(twice.items()):
        if name not in read.all_tied_weights_keys:
            return (
                f"model.pretrained {model.pretrained}: it ties {name} to {other}, but its files "
                "have both, with different numbers; set tie_word_embeddings: false in its "
                "config.json to train both, or remove from the files the one that is wrong"
            )
    return None


def find_non_finite(model: nn.Module) -> str | None:
    """NaN or infinity in this rank's part of the weights, in a sentence; None for neither."""
    names = [
        name.removeprefix("lm.")
        for name, parameter in base_weights(model)
        if not bool(torch.isfinite(getattr(parameter, "ds_tensor", parameter)).all())
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
    """Its report is a table of many lines, and accelerate tells of every model without memory."""
    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    accelerate = python_logging.getLogger("accelerate")
    level = accelerate.level
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    accelerate.setLevel(python_logging.ERROR)
    try:
        yield
    finally:
        accelerate.setLevel(level)
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()
