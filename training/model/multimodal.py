"""Checkpoints of images and text, of which the text model alone is trained."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from training.config.sections import Model

TEXT_NAMES = {
    r"^model\.language_model\.": "model.",
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
"""What the names of the text model's weights begin with in such a checkpoint, and without it."""
WEIGHT_FILES = "*.safetensors"


def text_name(name: str) -> str:
    """Of a weight of the whole model, in its text model; others stay as they are."""
    for prefix, own in TEXT_NAMES.items():
        name = re.sub(prefix, own, name)
    return name


def text_part(config: PretrainedConfig, folder: Path | None) -> PretrainedConfig:
    """The configuration of the text model of a checkpoint; its own where it has nothing else.

    Args:
        folder: where its files are, if they are on this machine.
    """
    text = config.get_text_config()
    if text is config or type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return config
    text = copy.deepcopy(text)
    if getattr(config, "quantization_config", None) is not None:
        text.quantization_config = config.quantization_config
    if text.dtype is None:
        text.dtype = config.dtype
    # some classes tie by the whole configuration, whose default is not what the files have
    names = None if folder is None else weight_names(folder)
    if names and not any(text_name(name).startswith("lm_head.") for name in names):
        text.tie_word_embeddings = True
    return text


def is_part(model: Model) -> bool:
    """Whether a recipe trains the text model of a larger checkpoint."""
    if model.pretrained is None:
        return False
    config = AutoConfig.from_pretrained(model.pretrained, trust_remote_code=model.trust_remote_code)
    return text_part(config, None) is not config


def name_rules(config: PretrainedConfig) -> dict[str, str] | None:
    """transformers' `key_mapping` for the weights of a text model, whatever it is a part of."""
    return TEXT_NAMES if config.get_text_config() is config else None


def weight_names(folder: Path) -> set[str]:
    """Of all weights in a folder of safetensors; empty without such."""
    names: set[str] = set()
    for path in folder.glob(WEIGHT_FILES):
        with safe_open(path, "pt") as file:
            names.update(file.keys())
    return names


def load_text_model(
    source: str | Path, *, trust_remote_code: bool, **options: Any
) -> PreTrainedModel:
    """By plain transformers: of a checkpoint of images and text its text model."""
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    text = text_part(config, Path(source) if Path(source).is_dir() else None)
    if text is not config:
        options |= {"config": text, "key_mapping": name_rules(text)}
    with without_report():
        lm: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=trust_remote_code, **options
        )
    return lm


@contextmanager
def without_report() -> Iterator[None]:
    """transformers lists all that a text model leaves out; what is missing has been looked for."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def tell_of_other_parts(model: Model) -> None:
    """One line on stderr about what a run leaves as it is."""
    if is_part(model):
        print(
            f"{model.pretrained} is a model of more than text: its text model is trained, the rest "
            "stays as it is, and an export is such a model again",
            file=sys.stderr,
            flush=True,
        )
