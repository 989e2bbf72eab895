"""Write docs/models.md: every causal family of transformers, tried on tiny models of it."""

from __future__ import annotations

import re
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import transformers

from tests.distributed import run_ranks
from tests.training.families import FAMILIES, config_of, measure_all, refusal
from training.config.sections import Model
from training.model.causal_lm import resolve_model_config
from training.model.own_dropout import own_dropout

PAGE = Path(__file__).resolve().parents[0] / "models.md"
_SECONDS, _AT_A_TIME, _MOST_CHARACTERS = 600, 8, 160
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
own defaults was tried, in fp32, without their dropout. {trained} train.

A family trains if losses and all gradients of packed documents are those of plain transformers,
document by document, to 3e-5, on two ranks with sequences that are cut in two
(`train.sequence_parallel_size: 2`), or where that does not go, with a sequence each.
Your model may differ from its family's defaults: before any weight is loaded, a start tries a tiny
model of your own configuration in the same way, and refuses it in a sentence if a loss differs.
`python -m launch preflight` does so without a start.

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


class Outcome(NamedTuple):
    """Of a family, by the longest way that it goes."""

    refused: str | None
    on_shards: str | None = None
    """Why a sequence cannot be cut."""


def examine(families: Sequence[str]) -> dict[str, Outcome]:
    """Start, then losses and gradients on two ranks, with a sequence cut in two if that goes."""
    found = {family: Outcome(refusal(family)) for family in families}
    candidates = [family for family, outcome in found.items() if outcome.refused is None]
    on_shards = _on_ranks(candidates, 2)
    whole = _on_ranks([family for family in candidates if on_shards[family]], 1)
    return found | {family: Outcome(whole.get(family), on_shards[family]) for family in candidates}


def _on_ranks(families: list[str], sp_size: int) -> dict[str, str | None]:
    """A few at a time: some take much memory."""
    found: dict[str, str | None] = {}
    for start in range(0, len(families), _AT_A_TIME):
        some = families[start : start + _AT_A_TIME]
        configs = {family: config_of(family) for family in some}
        ranks = run_ranks(measure_all, configs, sp_size, world_size=2, timeout_seconds=_SECONDS)
        found |= {
            family: next((each[family] for each in ranks if each[family]), None) for family in some
        }
    return found


def page(found: Mapping[str, Outcome]) -> str:
    """The whole page."""
    trained = {family: each.on_shards for family, each in found.items() if each.refused is None}
    rows = [_row(family, why) for family, why in sorted(trained.items())]
    head = _HEAD.format(version=transformers.__version__, families=len(found), trained=len(trained))
    reasons: dict[str, list[str]] = defaultdict(list)
    for family, each in sorted(found.items()):
        if each.refused is not None:
            reasons[reason(family, each.refused)].append(f"`{family}`")
    others = [f"| {why} | {', '.join(names)} |\n" for why, names in sorted(reasons.items())]
    return head + "".join(rows) + _REFUSED + "".join(others)


def _row(family: str, why_not: str | None) -> str:
    config: Any = resolve_model_config(
        Model(config=config_of(family), disable_dropout=True), vocab_size=1, dtype=None
    )
    default = type(config)()
    has_dropout = "yes" if own_dropout(default) else ""
    shards = "any that divide the heads" if why_not is None else f"1 alone: {_shortened(why_not)}"
    return f"| `{family}` | {KNOWN_AS.get(family, '')} | {shards} | {has_dropout} |\n"


def reason(family: str, why: str) -> str:
    """Without what differs between families of one reason."""
    why = why.removeprefix("model: ")
    why = re.sub(r"^\S+ (is not supported|has|cannot)", r"\1", why)
    why = re.sub(r" by up to .*$", "", why)
    return _shortened(why.removeprefix("is not supported").lstrip(":; "))


def _shortened(text: str) -> str:
    return textwrap.shorten(text, _MOST_CHARACTERS, placeholder="...").replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(examine(FAMILIES)), encoding="utf-8")
    print(PAGE.name)
