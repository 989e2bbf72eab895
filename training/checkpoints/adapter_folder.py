"""An adapter as a folder of peft's, written and read back beside its base."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from training.checkpoints.mixing import load_base, trained_in
from training.checkpoints.public_names import ADAPTER_CONFIG
from training.config.adapter import Adapter
from training.config.sections import Model
from training.model.adapter import is_of_adapter, lora_config, put_adapter, require_peft
from training.model.skeleton import build_skeleton

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def is_adapter_folder(folder: Path) -> bool:
    """Whether it holds an adapter and no whole model."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def write_adapter(
    folder: Path, trained: Mapping[str, Tensor], *, model: Model, adapter: Adapter, kept: Path
) -> None:
    """Write what `peft.PeftModel.from_pretrained(base, folder)` loads.

    Args:
        trained: the adapter's weights, by their names in an engine, in the dtype to write.
        kept: folder with the configuration of the model.
    """
    require_peft()
    from peft import PeftModel

    skeleton = build_skeleton(kept, model)
    base = model.pretrained
    if base is not None and Path(base).is_dir():  # to be found from any folder
        base = str(Path(base).resolve())
    lm = PeftModel(skeleton, lora_config(skeleton, adapter, base=base))
    put_adapter(skeleton, trained)
    lm.save_pretrained(str(folder))
    (folder / "README.md").unlink()  # a form that nobody has filled in


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The weights in such a folder, by their names in an engine."""
    return {
        re.sub(
            r"\.(lora_\w+?)(\.weight)?$", r".\1.default.weight", name.removeprefix(_PREFIX)
        ): weight
        for name, weight in load_file(folder / WEIGHTS).items()
    }


def load_beside_base(folder: Path, *, model: Model, checkpoint: Path) -> PreTrainedModel:
    """Base and adapter as users load them, in the dtype of the training.

    Args:
        checkpoint: of the run, which knows its base by a fingerprint.

    Raises:
        ValueError: when the base is no longer the same.
    """
    from peft import PeftModel

    base = load_base(model, checkpoint).to(trained_in(checkpoint))  # type: ignore[arg-type]
    lm = PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False)
    loaded: Any = lm.get_base_model()  # not the base: peft's layers are in it
    assert isinstance(loaded, PreTrainedModel)
    return loaded


def adapter_weights(lm: PreTrainedModel) -> dict[str, Tensor]:
    """Of a model that has one."""
    return {name: weight for name, weight in lm.state_dict().items() if is_of_adapter(name)}


def rounded(trained: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The adapter's weights as the engine computes with them."""
    return {name: weight.to(dtype) for name, weight in trained.items() if is_of_adapter(name)}
