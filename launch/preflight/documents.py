"""Check: packed documents do not see each other, by the attention that trains.

B rows, S tokens of this rank's sequence shard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from launch.preflight.finding import Finding, name_ranks
from launch.preflight.setting import Context, Setting
from launch.preflight.tiny import make_pack, make_stream, tiny_engine
from training.data.documents import find_documents
from training.data.stream import MicroBatch
from training.model.ds_config import training_dtype
from training.model.engine import Engine
from training.model.inputs import ModelInputs

_MAX_SHARE = 1e-4
"""Share of the change within the document; with one kernel others stay the same bit for bit."""


def measure(context: Context) -> dict[str, float]:
    """Largest change of entropies of this shard when the tokens of one document change.

    `others`: of other documents; `own`: of that one; `blind`: of others when all are declared to be
    one document, which must be visible, or the comparison could not see a leak.
    """
    dtype = training_dtype(context.recipe.deepspeed)
    with tiny_engine(context, dtype=dtype, num_micro_steps=1) as (_, engine):
        before, after = (
            make_stream(context, make_pack(context, num_micro_steps=1, changed=changed)).step(0)[0]
            for changed in (False, True)
        )
        is_own_BS = _changed_places(context, before)
        isolated_BS = _change(engine, before, after)
        joined_BS = _change(engine, _as_one(context, before), _as_one(context, after))
    return {
        "others": _largest(isolated_BS[~is_own_BS]),
        "own": _largest(isolated_BS[is_own_BS]),
        "blind": _largest(joined_BS[~is_own_BS]),
    }


def _change(engine: Engine, before: MicroBatch, after: MicroBatch) -> Tensor:
    """Of the entropy at each position of the shard; it depends on the context alone."""
    entropies = [engine.probe(ModelInputs.of(batch))[1].float() for batch in (before, after)]
    return (entropies[0] - entropies[1]).abs().cpu()


def _changed_places(context: Context, batch: MicroBatch) -> Tensor:
    layout = context.layout
    pack = make_pack(context, num_micro_steps=1)
    is_own_T = torch.zeros(pack.seq_len, dtype=torch.bool)
    is_own_T[pack.changed_document(layout.dp_rank)] = True
    length = batch.ids_BS.shape[1]
    return is_own_T[layout.sp_rank * length : (layout.sp_rank + 1) * length][None]


def _as_one(context: Context, batch: MicroBatch) -> MicroBatch:
    whole_BT = torch.arange(make_pack(context, num_micro_steps=1).seq_len)[None]
    return replace(batch, documents=find_documents(whole_BT, device=context.layout.device))


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def judge(setting: Setting, measures: Mapping[int, dict[str, float]]) -> list[Finding]:
    """Other documents must stay unchanged, where a leak would have changed them."""
    own, blind = (max(found[key] for found in measures.values()) for key in ("own", "blind"))
    if own == 0 or blind <= _MAX_SHARE * own:
        return [
            Finding(
                "fail",
                f"the comparison is blind (change of the document itself {own:.1e}, of others "
                f"in one document with it {blind:.1e})",
                "attention ignores the tokens: do not train with this",
            )
        ]
    if leaks := tuple(r for r, found in measures.items() if found["others"] > _MAX_SHARE * own):
        most = max(measures[rank]["others"] for rank in leaks)
        return [
            Finding(
                "fail",
                f"documents leak: changing one changes others' entropies by up to {most:.1e} nats "
                f"(its own by {own:.1e}) on {name_ranks(leaks, setting.hosts)}",
                "attention crosses documents with these versions: pip install -r requirements.txt",
                leaks,
            )
        ]
    worst = max(found["others"] for found in measures.values())
    return [
        Finding(
            "pass",
            f"changing one document changes its own entropies by {own:.1e} nats, others by "
            f"{worst:.1g} (a leak would show as {blind:.1e})",
        )
    ]
