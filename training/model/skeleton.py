"""A model without memory, built by transformers from the files of a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from training.config.sections import Model


def build_skeleton(folder: Path, model: Model) -> PreTrainedModel:
    """Names, shapes and dtypes of the weights; all of them on the device `meta`.

    Raises:
        ValueError: when transformers cannot build it, for whatever reason.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # it may outlive the engine that it was made for
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, dtype=config.dtype, trust_remote_code=model.trust_remote_code
            )
    except Exception as error:  # of many kinds: missing code, its imports, its own checks
        raise ValueError(
            "model: transformers cannot build it from its configuration and code alone, so it "
            f"could not be exported: {' '.join(str(error).split())}"
        ) from None
