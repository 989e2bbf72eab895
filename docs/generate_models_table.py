"""Write docs/models.md: every causal family of transformers, tried on tiny models of it.

`python -m docs.generate_models_table` tries all, ten minutes on two idle cores, and goes on where
it was stopped; `python -m docs.generate_models_table qwen3 opt` tries these and prints their rows.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import textwrap
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import transformers

from common.hints import did_you_mean
from tests.distributed import run_ranks
from tests.training.families import FAMILIES, config_of, measure_all, refusal
from training.config.sections import Model
from training.model.causal_lm import resolve_model_config
from training.model.own_dropout import own_dropout

PAGE = Path(__file__).resolve().parents[0] / "models.md"
_FOUND = PAGE.with_name("models_found.jsonl")
"""What has been tried, until the page is written."""
_SECONDS, _MOST_CHARACTERS = 300, 160
KNOWN_AS = {
    "apertus": "Apertus",
    "bamba": "Bamba",
    "bloom": "BLOOM, BLOOMZ",
    "cohere2": "Command R7B, Aya",
    "deepseek_v2": "DeepSeek V2",
    "deepseek_v3": "DeepSeek V3, R1",
    "ernie4_5": "ERNIE 4.5",
    "ernie4_5_moe": "ERNIE 4.5 with experts",
    "exaone4": "EXAONE 4",
    "falcon": "Falcon 7B, 40B, RW",
    "falcon_h1": "Falcon-H1",
    "gemma": "Gemma 1",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3",
    "glm4": "GLM-4",
    "glm4_moe": "GLM-4.5 to 4.7",
    "gpt2": "GPT-2, DistilGPT-2, Cerebras-GPT",
    "gpt_bigcode": "StarCoder, SantaCoder",
    "gpt_neo": "GPT-Neo, TinyStories",
    "gpt_neox": "Pythia, GPT-NeoX, Dolly",
    "gpt_oss": "gpt-oss",
    "gptj": "GPT-J",
    "granite": "Granite 3",
    "granitemoehybrid": "Granite 4",
    "jamba": "Jamba",
    "kimi_linear": "Kimi Linear",
    "lfm2": "LFM2",
    "llama": "Llama 1 to 3, SmolLM2, Falcon 3, Yi",
    "minimax_m2": "MiniMax M2",
    "ministral3": "Ministral 3",
    "mistral": "Mistral 7B, Nemo, Small",
    "mixtral": "Mixtral",
    "modernbert-decoder": "Ettin",
    "mpt": "MPT",
    "nemotron": "Nemotron 4, Minitron",
    "nemotron_h": "Nemotron-H, Nano 2",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3",
    "olmo_hybrid": "OLMo Hybrid",
    "olmoe": "OLMoE",
    "opt": "OPT, Galactica",
    "phi": "Phi 1, 1.5, 2",
    "phi3": "Phi 3, 3.5, 4, 4-mini",
    "phimoe": "Phi-3.5-MoE",
    "qwen2": "Qwen 1.5 to 2.5",
    "qwen2_moe": "Qwen 1.5 and 2 with experts",
    "qwen3": "Qwen 3",
    "qwen3_5_moe_text": "Qwen 3.5 with experts",
    "qwen3_5_text": "Qwen 3.5",
    "qwen3_moe": "Qwen 3 30B-A3B",
    "qwen3_next": "Qwen3-Next",
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
document by document, to 1e-5, on two ranks with sequences that are cut in two
(`train.sequence_parallel_size: 2`), or where that does not go, with a sequence each. Where plain
transformers' own gradients in fp32 are further from those in float64, twice as far is allowed.
Your model may differ from its family's defaults: before any weight is loaded, a start tries a tiny
model of your own configuration in the same way, and refuses it in a sentence if a loss differs.
`python -m launch preflight` does so without a start.

- **Dropout.** The families marked so have dropout of their own by default, and so do many published
  configurations of theirs. It would draw other numbers on each layout: set
  `model.disable_dropout: true`. The regularisers of a recipe take its place.
- **Quantized weights** are refused, also by `python -m launch plan`. gpt-oss is published in MXFP4,
  DeepSeek V3 and R1 in FP8: train a copy in bf16.
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


def examine(family: str) -> Outcome:
    """Start, then losses and gradients on two ranks, with a sequence cut in two if that goes."""
    refused = _on_ranks(refusal, family, world_size=1)
    if refused is not None:
        return Outcome(refused)
    on_shards = _measured(family, 2)
    return Outcome(on_shards and _measured(family, 1), on_shards)


def _measured(family: str, sp_size: int) -> str | None:
    configs = {family: config_of(family)}
    ranks = _on_ranks(measure_all, configs, sp_size, world_size=2)
    return ranks if isinstance(ranks, str) else ranks[family]


def _on_ranks(function: Any, *args: Any, world_size: int) -> Any:
    """What the first rank says that has something to say; a sentence where a process is lost."""
    try:
        ranks = run_ranks(function, *args, world_size=world_size, timeout_seconds=_SECONDS)
    except AssertionError as error:
        if "hanging ranks: []" in str(error):  # not even an exception of the model's came back
            return f"cannot be tried: {str(error).splitlines()[-1]}"
        return f"cannot be tried in {_SECONDS} seconds"
    return max(ranks, key=lambda found: any(found.values()) if isinstance(found, dict) else 0)


def examine_all() -> dict[str, Outcome]:
    """Every family, but for those that an interrupted run of the same code has tried."""
    code = _code()
    lines = _FOUND.read_text(encoding="utf-8").splitlines() if _FOUND.exists() else []
    rows = [row for row in map(json.loads, lines) if row.pop("code") == code]
    found = {row.pop("family"): Outcome(**row) for row in rows}
    began = time.monotonic()
    for number, family in enumerate(FAMILIES, 1):
        if family in found:
            continue
        found[family] = outcome = examine(family)
        with _FOUND.open("a", encoding="utf-8") as file:
            row = {"family": family, "code": code, **outcome._asdict()}
            file.write(json.dumps(row) + "\n")
        seconds = time.monotonic() - began
        print(f"{number} of {len(FAMILIES)}, {seconds:.0f} s: {_told(family, outcome)}", flush=True)
    return found


def _code() -> str:
    """Of the versions that outcomes belong to."""
    root = PAGE.parents[1]
    sources = sorted([*root.glob("training/**/*.py"), root / "tests/training/families.py"])
    contents = b"".join(path.read_bytes() for path in sources)
    return hashlib.sha256(contents + transformers.__version__.encode()).hexdigest()[:16]


def _told(family: str, outcome: Outcome) -> str:
    if outcome.refused is not None:
        return f"{family} is refused: {reason(family, outcome.refused)}"
    return f"{family} trains; sequence shards: {_shards(outcome.on_shards)}"


def _shards(why_not: str | None) -> str:
    if why_not is None:
        return "any that divide the heads"
    carries = re.search(r"its layers of the kind \S+ (carry .*documents),", why_not)
    return f"1 alone: {'layers ' + carries[1] if carries else _shortened(why_not)}"


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
    known_as = KNOWN_AS.get(family, "")
    return f"| `{family}` | {known_as} | {_shards(why_not)} | {has_dropout} |\n"


def reason(family: str, why: str) -> str:
    """Without what differs between families of one reason."""
    why = why.removeprefix("model: ")
    why = re.sub(r"^\S+ (is not supported|has|cannot)", r"\1", why)
    why = re.sub(r" by up to .*$", "", why)
    return _shortened(why.removeprefix("is not supported").lstrip(":; "))


def _shortened(text: str) -> str:
    return textwrap.shorten(text, _MOST_CHARACTERS, placeholder="...").replace("|", "\\|")


def main(names: list[str]) -> None:
    """Write the page, or print what is found of the families named."""
    for name in names:
        if name not in FAMILIES:
            sys.exit(f"no family {name} in transformers{did_you_mean(name, FAMILIES)}")
    for name in names:
        outcome = examine(name)
        row = _row(name, outcome.on_shards) if outcome.refused is None else _told(name, outcome)
        print(row.rstrip(), flush=True)
    if not names:
        PAGE.write_text(page(examine_all()), encoding="utf-8")
        _FOUND.unlink()
        print(PAGE.name)


if __name__ == "__main__":
    main(sys.argv[1:])
