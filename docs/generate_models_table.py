"""Write docs/models.md: every causal family of transformers, tried on tiny models of it."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import transformers

from tests.distributed import run_ranks
from tests.training.families import FAMILIES, config_of, measure, refusal
from training.config.sections import Model
from training.model.causal_lm import resolve_model_config
from training.model.own_dropout import own_dropout

PAGE = Path(__file__).resolve().parents[0] / "models.md"
_SECONDS = 3600
KNOWN_AS = {
    "bloom": "BLOOM, BLOOMZ",
    "cohere2": "Command R7B, Aya",
    "deepseek_v3": "DeepSeek V3, R1",
    "exaone4": "EXAONE 4",
    "falcon": "Falcon 7B, 40B, RW",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3",
    "glm4": "GLM-4",
    "gpt2": "GPT-2, DistilGPT-2, Cerebras-GPT",
    "gpt_bigcode": "StarCoder, SantaCoder",
    "gpt_neo": "GPT-Neo, TinyStories",
    "gpt_neox": "Pythia, GPT-NeoX, Dolly",
    "gpt_oss": "gpt-oss",
    "gptj": "GPT-J",
    "granite": "Granite 3",
    "llama": "Llama 1 to 3, SmolLM2, Falcon 3, Yi",
    "mistral": "Mistral 7B, Nemo, Small",
    "ministral3": "Ministral 3",
    "mixtral": "Mixtral",
    "modernbert-decoder": "Ettin",
    "mpt": "MPT",
    "nemotron": "Nemotron 4, Minitron",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3",
    "olmoe": "OLMoE",
    "opt": "OPT, Galactica",
    "phi": "Phi 1, 1.5, 2",
    "phi3": "Phi 3, 3.5, 4, 4-mini",
    "qwen2": "Qwen 1.5 to 2.5",
    "qwen3": "Qwen 3",
    "qwen3_moe": "Qwen 3 30B-A3B",
    "seed_oss": "Seed-OSS",
    "smollm3": "SmolLM3",
    "stablelm": "StableLM 2, 3B",
    "starcoder2": "StarCoder 2",
    "xglm": "XGLM",
}
"""The models that most people mean, by family."""
_HEAD = """\
# Models

Written by `python -m docs.generate_models_table` with transformers {version}: of each of the
{families} families that it can load as a causal LM, a tiny model with the settings of the family's
own defaults was tried, in fp32. {trained} train.

A family trains if losses, entropies and all gradients of packed documents are those of plain
transformers, document by document, to 1e-5; on two ranks with a sequence each, and with one
sequence cut in two (`train.sequence_parallel_size: 2`). What a family has beside its defaults, your
model may have: before any weight is loaded, a start tries a tiny model of your own configuration in
the same way, and refuses it in a sentence if a loss differs. `python -m launch.preflight` does so
without a start.

- **Dropout.** The families marked so have dropout of their own by default, and so do many published
  configurations of theirs. It would draw other numbers on each layout: set
  `model.disable_dropout: true`. The regularisers of a recipe take its place.
- **RoPE that depends on length** (`longrope` of Phi 3 and 4-mini, `dynamic`): each document of a
  sample has the frequencies of its own length, as if it were alone.
- **Learned positions** (GPT-2, OPT and others) end somewhere: longer samples are refused.
- **ALiBi** (BLOOM, MPT, some Falcons) runs in torch's own attention with a bias, not in flash
  attention; expect it to be slower on a GPU.

## Families that train

| `model_type` | known as | sequence shards | dropout of its own |
|---|---|---|---|
"""
_REFUSED = """
## Families that are refused

| why | `model_type` |
|---|---|
"""


def trained_families(page: str) -> set[str]:
    """Of the first table of a page."""
    first, _ = page.split(_REFUSED.strip().splitlines()[0])
    return set(re.findall(r"^\| `([^`]+)` \|", first, flags=re.MULTILINE))


def try_all(families: list[str], sp_size: int) -> dict[str, str | None]:
    """On one of two ranks: what is wrong with each, None where nothing is."""
    return {family: _try(family, sp_size) for family in families}


def _try(family: str, sp_size: int) -> str | None:
    try:
        return measure(config_of(family), sp_size=sp_size)
    except Exception as error:  # of any kind: the model's own code
        return f"{type(error).__name__}: {error}".splitlines()[0]


def page() -> str:
    """The whole page; takes ten minutes."""
    refused = {family: refusal(family) for family in FAMILIES}
    candidates = [family for family, why in refused.items() if why is None]
    for family, why in _on_ranks(candidates, 1).items():
        refused[family] = why
    trained = [family for family in candidates if refused[family] is None]
    on_shards = _on_ranks(trained, 2)
    rows = [_row(family, on_shards[family]) for family in sorted(trained)]
    head = _HEAD.format(
        version=transformers.__version__, families=len(FAMILIES), trained=len(trained)
    )
    reasons: dict[str, list[str]] = defaultdict(list)
    for family, why in sorted(refused.items()):
        if why is not None:
            reasons[reason(family, why)].append(f"`{family}`")
    others = [f"| {why} | {', '.join(names)} |\n" for why, names in sorted(reasons.items())]
    return head + "".join(rows) + _REFUSED + "".join(others)


def _on_ranks(families: list[str], sp_size: int) -> dict[str, str | None]:
    first, *others = run_ranks(try_all, families, sp_size, world_size=2, timeout_seconds=_SECONDS)
    return {
        family: next((each[family] for each in (first, *others) if each[family]), None)
        for family in families
    }


def _row(family: str, why_not: str | None) -> str:
    config: Any = resolve_model_config(
        Model(config=config_of(family), disable_dropout=True), vocab_size=1, dtype=None
    )
    default = type(config)()
    has_dropout = "yes" if own_dropout(default) else ""
    shards = "any that divide the heads" if why_not is None else f"1 alone: {_cell(why_not)}"
    return f"| `{family}` | {KNOWN_AS.get(family, '')} | {shards} | {has_dropout} |\n"


def reason(family: str, why: str) -> str:
    """Without what differs between families of one reason."""
    why = why.removeprefix("model: ")
    why = re.sub(r"^\S+ (is not supported|has|cannot)", r"\1", why)
    why = re.sub(r" by up to .*$", "", why)
    return _cell(why.removeprefix("is not supported").lstrip(":; "))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.name)
