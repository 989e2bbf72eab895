"""Checks: the model against layout and corpus, and its tokenizer against the corpus's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from data_prep.shards import Corpus, open_corpus
from launch.preflight.finding import Finding, name_ranks, ranks_by_value
from launch.preflight.formatting import count
from launch.preflight.setting import Context, Setting
from training.config.recipe import Recipe
from training.model.causal_lm import resolve_model_config
from training.model.checks import check_heads
from training.model.ds_config import training_dtype
from training.model.heads import heads_of_layers
from training.model.tokenizers import (
    TOKENIZER_FILE,
    find_other_ids,
    find_pair,
    local_tokenizer,
)
from training.run.fit import check_vocabulary

_INDEX, _WEIGHTS = "model.safetensors.index.json", "model.safetensors"
_IGNORED_PARTS = ("padding", "truncation")
"""Keys of tokenizer.json: set by whoever used it last, irrelevant for ids."""


def model_config(recipe: Recipe, corpus: Corpus | None = None) -> PretrainedConfig:
    """What training would build; without a corpus only what the model says of itself."""
    vocab_size = corpus.vocab_size if corpus else 1
    return resolve_model_config(
        recipe.model, vocab_size=vocab_size, dtype=training_dtype(recipe.deepspeed)
    )


def measure(context: Context) -> dict[str, Any]:
    """Sizes of the model.

    Raises:
        ValueError: for heads, a vocabulary or files with which training would fail.
    """
    recipe = context.recipe
    corpus = open_corpus(recipe.data.corpus)
    text = model_config(recipe, corpus).get_text_config()
    check_vocabulary(text, corpus)
    check_heads(text, sp_size=context.setting.sp_size)
    heads = heads_of_layers(text)[0]
    num_files = _check_files(Path(recipe.model.pretrained)) if recipe.model.pretrained else 0
    return {
        "heads": heads.queries,
        "kv_heads": heads.keys,
        "vocab": text.vocab_size,
        "corpus_vocab": corpus.vocab_size,
        "files": num_files,
    }


def _check_files(folder: Path) -> int:
    """Every safetensors file of a local folder has the length that its own header says."""
    if not folder.is_dir():
        return 0  # a name of the hub, which transformers checks when it downloads
    names = [_WEIGHTS]
    if (folder / _INDEX).is_file():
        weight_map = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    for name in names:
        path = folder / name
        if not path.is_file():
            raise ValueError(f"model.pretrained: {path} is missing; copy the model again")
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 0 < header_bytes < path.stat().st_size:
                raise ValueError(
                    f"model.pretrained: {path} is not a safetensors file, or truncated"
                )
            header = json.loads(file.read(header_bytes))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        expected = 8 + header_bytes + max(ends, default=0)
        if path.stat().st_size != expected:
            raise ValueError(
                f"model.pretrained: {path} has {path.stat().st_size:,} bytes, its header says "
                f"{expected:,}; copy the model again"
            )
    return len(names)


def judge(setting: Setting, measures: Mapping[int, dict[str, Any]]) -> list[Finding]:
    """Errors have been raised; ranks that read another model are named."""
    (usual, _), *others = ranks_by_value({r: json.dumps(m) for r, m in measures.items()})
    findings = [
        Finding(
            "fail",
            f"another model on {name_ranks(ranks, setting.hosts)}: {value} instead of {usual}",
            "give all hosts the same model.pretrained",
            ranks,
        )
        for value, ranks in others
    ]
    if findings:
        return findings
    found = json.loads(usual)
    files = f"; {count(found['files'], 'file')} of weights complete" if found["files"] else ""
    return [
        Finding(
            "pass",
            f"{found['heads']} heads and {found['kv_heads']} key-value heads over "
            f"{count(setting.sp_size, 'rank')}; vocabulary {found['vocab']:,} of the model covers "
            f"{found['corpus_vocab']:,} of the corpus{files}",
        )
    ]


def measure_tokenizer(context: Context) -> dict[str, Any]:
    """How the corpus's tokenizer differs from that of the model, if it is available here.

    Raises:
        ValueError: when the two give different ids.
    """
    recipe = context.recipe
    corpus = open_corpus(recipe.data.corpus)
    if recipe.model.pretrained is None:
        return {"how": "from scratch: the corpus's tokenizer is the model's", "same": None}
    pair = find_pair(corpus.tokenizer_dir, recipe.model.pretrained)
    if pair is None:
        return _not_compared(recipe.model.pretrained)
    kept, own = pair
    if mistake := find_other_ids(kept, own):
        raise ValueError(mistake)
    theirs, ours = (_meaning(path) for path in (own, kept))
    parts = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    eos = model_config(recipe, corpus).get_text_config().eos_token_id
    known = [eos] if isinstance(eos, int) else list(eos or [])
    end = corpus.manifest.special_ids.eos
    return {
        "how": f"{own}",
        "same": not parts,
        "parts": parts,
        "eos": None if end is None or not known or end in known else [end, known],
    }


def _not_compared(pretrained: str) -> dict[str, Any]:
    own = local_tokenizer(pretrained)
    if own is None:
        return {"how": f"no {TOKENIZER_FILE} of {pretrained} on this host", "same": None}
    return {"how": f"the corpus was made with sentencepiece, not with {own}", "same": False}


def _meaning(path: Path) -> dict[str, Any]:
    if path.suffix != ".json":
        return {path.name: path.read_bytes()}
    content = json.loads(path.read_text(encoding="utf-8"))
    added = content.get("post_processor") or {}
    if added.get("type") == "TemplateProcessing" and not added.get("special_tokens"):
        content["post_processor"] = None  # transformers 5 saves one that adds nothing
    return {key: value for key, value in content.items() if key not in _IGNORED_PARTS}


def judge_tokenizer(setting: Setting, measures: Mapping[int, dict[str, Any]]) -> list[Finding]:
    """Other ids have been raised; other rules with the same ids, or another end, only warn."""
    found = measures[min(measures)]
    if found["same"] is None:
        return [Finding("skip", found["how"])]
    findings = []
    if not found["same"]:
        parts = ", ".join(found.get("parts", []))
        findings.append(
            Finding(
                "warn",
                f"the ids are the same as in {found['how']}, but the rules differ ({parts})"
                if parts
                else found["how"],
                "build the corpus with --tokenizer of this model",
            )
        )
    if found.get("eos"):
        end, known = found["eos"]
        findings.append(
            Finding(
                "warn",
                f"documents of the corpus end with id {end}, the model's texts with {known}",
                "an exported model may not stop where it should; see eos_token_id",
            )
        )
    return findings or [Finding("pass", f"the corpus's tokenizer is that of {found['how']}")]
