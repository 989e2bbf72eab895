"""The model card of an export: what it was made from, how, and what it measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from training.config.recipe import Recipe

CARD = "README.md"
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_KEPT = ("license", "license_name", "license_link", "language")
"""Of the base's card."""


def write_model_card(
    folder: Path, recipe: Recipe, *, mix: Mapping[str, Any], manifest: Mapping[str, Any]
) -> None:
    """Replace the base's card, whose text is about another model.

    Args:
        folder: of the export, with the base's card in it, if it had one.
        mix: what of several checkpoints or the base the weights are.
        manifest: of the newest of the checkpoints.
    """
    front = {key: value for key, value in _front(folder / CARD).items() if key in _KEPT}
    is_adapter = (folder / "adapter_config.json").is_file()
    front["library_name"] = "peft" if is_adapter else "transformers"
    base = recipe.model.pretrained
    is_local = base is not None and Path(base).is_dir()
    if base is not None and not is_local:
        front["base_model"] = base
    name = None if base is None else (Path(base).name if is_local else base)
    facts = {
        "began from": name or "random weights",
        "optimizer steps": manifest["step"],
        "tokens": manifest["tokens"],
        "held-out loss (nats a token)": manifest["heldout_loss"] if not mix else None,
        "tokens in a sample": recipe.data.sequence_tokens,
        "tokens in a step": recipe.train.global_batch_tokens,
        "learning rate": recipe.optimizer.lr,
        "regularisers": ", ".join(recipe.regularisers),
        "adapter": recipe.adapter and f"{recipe.adapter.kind}, rank {recipe.adapter.rank}",
        "seed": recipe.seed,
        **{f"mix: {key}": value for key, value in mix.get("mix", {}).items()},
    }
    lines = [f"| {key} | {value} |" for key, value in facts.items() if value is not None]
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    table = "\n".join(["| | |", "|---|---|", *lines])
    content = f"---\n{text}---\n# {Path(recipe.run_dir).name}\n\n{table}\n"
    (folder / CARD).write_text(content, encoding="utf-8")


def _front(card: Path) -> dict[str, Any]:
    """What a card says of itself to machines; nothing where it has none that can be read."""
    try:
        found = _FRONT.match(card.read_text(encoding="utf-8"))
        content = yaml.safe_load(found[1]) if found else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
