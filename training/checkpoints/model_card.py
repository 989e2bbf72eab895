"""The model card of an export: what it was made from, how, and what it measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from data_prep.shards import Corpus, open_corpus
from training.checkpoints.manifest import CARD, trained_loss
from training.checkpoints.public_names import RANDOM_WEIGHTS, card_front, is_of_hub, public_name
from training.config.recipe import Recipe
from training.metrics.file import METRICS_FILE, read_metrics
from training.metrics.heldout_rows import results_by_set

_KEPT = ("license", "license_name", "license_link", "language")
"""Of the base's card."""
_OF_TRAIN = ("global_batch_tokens", "epochs", "max_steps", "gradient_clipping", "z_loss")
_CHOOSE_TOKENS = ("entrodrop", "random_token_dropout")
"""Set by `dropout` and `entropy`; the others by keys of `baseline` that begin with their names."""


def write_model_card(
    folder: Path,
    recipe: Recipe,
    *,
    run_dir: Path,
    mix: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> None:
    """Replace the base's card, whose text is about another model.

    What cannot be known any more, as of a corpus that is gone or has changed, is left out.

    Args:
        folder: of the export, with the base's card in it, if it had one.
        run_dir: with the metrics of the run.
        mix: what of several checkpoints or the base the weights are.
        manifest: of the newest of the checkpoints.
    """
    front = {key: value for key, value in _front_of(folder / CARD).items() if key in _KEPT}
    is_adapter = (folder / "adapter_config.json").is_file()
    front["library_name"] = "peft" if is_adapter else "transformers"
    base = recipe.model.pretrained
    if base is not None and is_of_hub(base):
        front["base_model"] = base
    facts = {
        "began from": RANDOM_WEIGHTS if base is None else public_name(base),
        "licence of the base": base and (front.get("license_name") or front.get("license")),
        "optimizer steps": manifest["step"],
        "tokens": manifest["tokens"],
        "held-out loss (nats a token)": _loss(trained_loss(manifest)) if not mix else None,
        "tokens in a sample": recipe.data.sequence_tokens,
        "tokens in a step": recipe.train.global_batch_tokens,
        "learning rate": recipe.optimizer.lr,
        "regularisers": ", ".join(recipe.regularisers),
        "adapter": recipe.adapter and f"{recipe.adapter.kind}, rank {recipe.adapter.rank}",
        "seed": recipe.seed,
        **{f"mix: {key}": value for key, value in mix.get("mix", {}).items()},
    }
    known = [(key, value) for key, value in facts.items() if value is not None]
    parts = [
        f"# {_cell(Path(recipe.run_dir).name)}\n\n{_table(('', ''), known)}",
        *_heldout(run_dir, step=manifest["step"] if not mix else None),
        *_data(recipe, manifest),
        f"## Settings\n\n```yaml\n{_yaml(_settings(recipe))}```\n",
    ]
    content = "\n".join([f"---\n{_yaml(front)}---", *parts])
    (folder / CARD).write_text(content, encoding="utf-8")


def _heldout(run_dir: Path, *, step: int | None) -> list[str]:
    """The evaluation at the step that is exported, by set and by band, if there was one."""
    try:
        lines = _loss_lines(read_metrics(run_dir / METRICS_FILE), step=step)
    except (OSError, AttributeError, LookupError, TypeError, ValueError):
        return []  # of a version or a program that wrote other rows
    if not lines:
        return []
    heads = ("set", "entropy at step 0 (nats)", "loss (nats a token)", "tokens")
    return [f"## Held-out losses at step {step}\n\n{_table(heads, lines)}"]


def _loss_lines(rows: Sequence[Mapping[str, Any]], *, step: int | None) -> list[Sequence[object]]:
    found = [row for row in rows if row["kind"] == "evaluation" and row["step"] == step]
    sets = results_by_set(found[-1]) if found else {}
    lines: list[Sequence[object]] = []
    for name, one in sets.items():
        if one.get("loss") is not None:
            lines.append((name, "all", f"{one['loss']:.4f}", one["num_targets"]))
        for band in one.get("bands") or ():
            if band["loss"] is not None:
                entropies = f"{band['from_nats']:.2f} to {band['to_nats']:.2f}"
                lines.append((name, entropies, f"{band['loss']:.4f}", band["num_targets"]))
    return lines


def _data(recipe: Recipe, manifest: Mapping[str, Any]) -> list[str]:
    """What the corpus has, by its ledger."""
    corpus = _corpus_of(recipe, manifest)
    if corpus is None:
        return []
    lines = []
    for domain in corpus.manifest.domains:
        for split, part in domain.ledger.by_split.items():
            lines.append((domain.name, split, part.num_documents, part.num_tokens))
    heads = ("domain", "split", "documents", "tokens")
    tokenizer = corpus.manifest.tokenizer
    source = public_name(tokenizer.source)
    text = f"Tokenizer: {source} ({tokenizer.kind}), {corpus.vocab_size:,} tokens."
    return [f"## Data\n\n{_table(heads, lines)}\n{text}\n"]


def _loss(value: float | None) -> str | None:
    return None if value is None or not math.isfinite(value) else f"{value:.4f}"


def _corpus_of(recipe: Recipe, manifest: Mapping[str, Any]) -> Corpus | None:
    """The one that was trained on, unless it is gone or another one is in its place."""
    try:
        corpus = open_corpus(recipe.data.corpus)
        pack = corpus.open_pack(recipe.data.sequence_tokens)
    except (OSError, ValueError):
        return None
    is_same = pack.fingerprint == manifest.get("identity", {}).get("pack")
    return corpus if is_same else None


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What decides what is learnt, by the keys of the recipe; no folders."""
    names = tuple(recipe.regularisers)
    baseline = asdict(recipe.baseline)
    sections = {
        "regularisers": list(names),
        "dropout": asdict(recipe.dropout) if {*names} & {*_CHOOSE_TOKENS} else None,
        "entropy": asdict(recipe.entropy) if "entrodrop" in names else None,
        "baseline": {key: baseline[key] for key in baseline if key.startswith(names)},
        "mixture": asdict(recipe.data)["mixture"],
        "replay": recipe.replay and {"share": recipe.replay.share},
        "ema": recipe.ema and asdict(recipe.ema),
        "teacher": recipe.teacher and asdict(recipe.teacher),
        "adapter": recipe.adapter and asdict(recipe.adapter),
        "train": {key: getattr(recipe.train, key) for key in _OF_TRAIN},
        "optimizer": asdict(recipe.optimizer),
        "schedule": asdict(recipe.schedule),
    }
    return {key: value for key, value in sections.items() if value}


def _yaml(content: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(content, default=str))  # no tuples
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def _table(heads: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    rows = [f"| {' | '.join(map(_cell, line))} |" for line in lines]
    head = f"| {' | '.join(heads)} |" if any(heads) else "|" + " |" * len(heads)
    return "\n".join([head, "|" + "---|" * len(heads), *rows]) + "\n"


def _cell(value: object) -> str:
    """On one line, as tables and headings are."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _front_of(card: Path) -> dict[str, Any]:
    try:
        return card_front(card.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
