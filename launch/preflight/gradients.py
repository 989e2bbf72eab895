"""Check: loss and gradients of this layout against plain torch on one process.

L tokens of a padded document, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig

from launch.preflight.finding import Finding, name_ranks
from launch.preflight.setting import Context, Setting
from launch.preflight.tiny import TinyPack, make_pack, make_stream, tiny_config, tiny_engine
from launch.preflight.weights import gathered_weights
from training.data.stream import IGNORE
from training.model.ds_config import training_dtype
from training.model.engine import Engine
from training.model.inputs import ModelInputs
from training.model.tiny import plain_model
from training.ranks.dist import sum_over_ranks

_TOLERANCE = 1e-4
_ONE_ROUNDING = 2**-8
"""Relative, of a number to bf16."""
_DO_NOT_TRAIN = "do not train on this layout with these versions: pip install -r requirements.txt"
_MICRO_STEPS = 2
_MAX_ROWS = 128
"""Above this many sequences a single micro-step is enough work for the plain model."""
_ROWS_AT_ONCE = 8


def measure(context: Context) -> dict[str, Any]:
    """How far the gradient on this rank is from that of plain torch: in fp32, and as it trains.

    On a GPU flash attention and the head's kernels run in bf16 alone.
    """
    found = _compare(context, torch.float32)
    if training_dtype(context.recipe.deepspeed) is torch.bfloat16:
        found["bf16"] = _compare(context, torch.bfloat16)
    return found


def _compare(context: Context, dtype: torch.dtype) -> dict[str, Any]:
    """With the gradient of fp32; in bf16 also how far that of plain torch in bf16 is from it."""
    num_micro_steps = _MICRO_STEPS if context.layout.dp_size < _MAX_ROWS else 1
    pack = make_pack(context, num_micro_steps=num_micro_steps)
    config = tiny_config(context.recipe, dtype=torch.float32)
    with tiny_engine(context, dtype=dtype, num_micro_steps=num_micro_steps) as (_, engine):
        weights = gathered_weights(engine.ds.module)
        loss, found = engine_gradients(context, engine, pack)
    expected_loss, expected = plain_gradients(context, config, weights, pack)
    if found.keys() != expected.keys():
        raise ValueError(f"gradients of other weights: {sorted(found.keys() ^ expected.keys())}")
    names = sorted(expected)
    ours, exact = _joined(found, names), _joined(expected, names)
    differences = {
        name: float((found[name] - expected[name]).norm() / expected[name].norm().clamp(min=1e-12))
        for name in names
    }
    furthest = max(differences, key=differences.__getitem__)
    result = {
        "difference": differences[furthest],
        "name": furthest,
        "whole_difference": float((ours - exact).norm() / exact.norm()),
        "scale": float(ours @ exact / (exact @ exact)),
        "loss": loss,
        "expected_loss": expected_loss,
        "num_micro_steps": num_micro_steps,
    }
    if dtype is torch.bfloat16:
        rounded_config = tiny_config(context.recipe, dtype=dtype)
        _, rounded = plain_gradients(context, rounded_config, weights, pack)
        plain = _joined(rounded, names)
        result["plain_difference"] = float((plain - exact).norm() / exact.norm())
    return result


def _joined(gradients: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([gradients[name].float().flatten() for name in names])


def engine_gradients(
    context: Context, engine: Engine, pack: TinyPack
) -> tuple[float, dict[str, Tensor]]:
    """Loss and whole gradients of one step, by the calls that training makes."""
    batches = make_stream(context, pack).step(0)
    own_targets = torch.tensor([float(sum(batch.num_targets for batch in batches))])
    (num_targets,) = sum_over_ranks(own_targets.to(context.layout.device))
    total = torch.zeros(1, dtype=torch.float64, device=context.layout.device)
    gradients: dict[str, Tensor] = {}
    with _kept_before_update(engine, gradients):
        for batch in batches:
            weights_BS = batch.is_target_BS.float()
            loss_sum, _ = engine.weighted_loss(ModelInputs.of(batch), weights_BS)
            total += loss_sum.detach().double()
            engine.backward_and_step(loss_sum, divisor=num_targets, lr=0.0)
    (loss_sum_everywhere,) = sum_over_ranks(total)
    return loss_sum_everywhere / num_targets, gradients


@contextmanager
def _kept_before_update(engine: Engine, gradients: dict[str, Tensor]) -> Iterator[None]:
    """DeepSpeed frees gradients in its step, so they are copied when it begins."""
    from deepspeed.utils import safe_get_full_grad

    update = engine.ds.step

    def copy_and_update() -> None:
        if engine.ds.is_gradient_accumulation_boundary():
            for name, parameter in engine.ds.module.named_parameters():
                whole = safe_get_full_grad(parameter)
                gradients[name.removeprefix("lm.")] = whole.float().cpu().clone()
        update()

    engine.ds.step = copy_and_update
    try:
        yield
    finally:
        engine.ds.step = update


def plain_gradients(
    context: Context, config: PretrainedConfig, weights: dict[str, Tensor], pack: TinyPack
) -> tuple[float, dict[str, Tensor]]:
    """The same batch by transformers alone: no ZeRO, no Ulysses, no packing.

    Each document is a row of its own, padded at its end, where causal attention does not look.
    """
    model = plain_model(context.recipe.model, config)
    model.load_state_dict(weights, strict=False)
    model.train()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(context.layout.device)
    documents = [document for i in range(pack.num) for document in _documents_of(pack, i)]
    num_targets = sum(int((targets != IGNORE).sum()) for _, targets in documents)
    total = 0.0
    at_once = _ROWS_AT_ONCE * 8
    for first in range(0, len(documents), at_once):
        some = documents[first : first + at_once]
        length = max(len(ids) for ids, _ in some)
        ids_BL, targets_BL = (
            torch.stack([F.pad(pair[k], (0, length - len(pair[k])), value=fill) for pair in some])
            for k, fill in ((0, 0), (1, IGNORE))
        )
        logits_BLV = model(input_ids=ids_BL.to(context.layout.device)).logits
        targets = targets_BL.to(context.layout.device).flatten()
        loss = F.cross_entropy(
            logits_BLV.flatten(0, 1).float(), targets, ignore_index=IGNORE, reduction="sum"
        )
        (loss / num_targets).backward()
        total += float(loss.detach())
    gradients = {
        name: parameter.grad.cpu()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return total / num_targets, gradients


def _documents_of(pack: TinyPack, i: int) -> list[tuple[Tensor, Tensor]]:
    """Tokens and targets of each document of a sample: the next token, where not masked."""
    sample = pack.sample(i)
    starts = [*torch.from_numpy(sample.position_ids == 0).nonzero()[:, 0].tolist(), pack.seq_len]
    documents = []
    for start, end in pairwise(starts):
        ids = torch.from_numpy(sample.ids[start:end])
        targets = torch.full_like(ids, IGNORE)
        in_loss = torch.from_numpy(sample.in_loss[start + 1 : end])
        targets[:-1] = torch.where(in_loss, ids[1:], IGNORE)
        documents.append((ids, targets))
    return documents


def judge(setting: Setting, measures: Mapping[int, dict[str, Any]]) -> list[Finding]:
    """Every rank must have the gradient of one process."""
    in_fp32 = _judge_fp32(setting, measures)
    if in_fp32[0].verdict == "fail" or "bf16" not in measures[min(measures)]:
        return in_fp32
    in_bf16 = _judge_bf16(setting, {rank: m["bf16"] for rank, m in measures.items()})
    return in_bf16 if in_bf16[0].verdict == "fail" else in_fp32 + in_bf16


def _judge_fp32(setting: Setting, measures: Mapping[int, dict[str, Any]]) -> list[Finding]:
    wrong = tuple(
        rank
        for rank, found in measures.items()
        if not found["difference"] <= _TOLERANCE
        or not abs(found["loss"] / found["expected_loss"] - 1) <= _TOLERANCE
    )
    layout = _name_layout(setting)
    if wrong:
        found = max((measures[rank] for rank in wrong), key=lambda m: abs(m["scale"] - 1))
        return [
            Finding(
                "fail",
                f"{layout}: gradients are {found['scale']:.4f} times those of one process, "
                f"{found['name']} is off by {found['difference']:.1e}; loss {found['loss']:.6f} "
                f"instead of {found['expected_loss']:.6f} ({name_ranks(wrong, setting.hosts)})",
                _DO_NOT_TRAIN,
                wrong,
            )
        ]
    found = max(measures.values(), key=lambda m: m["difference"])
    return [
        Finding(
            "pass",
            f"{layout} x {found['num_micro_steps']} micro-steps: within {found['difference']:.1e} "
            f"of plain torch (loss {found['loss']:.4f})",
        )
    ]


def _judge_bf16(setting: Setting, measures: Mapping[int, dict[str, Any]]) -> list[Finding]:
    """No further from fp32 than twice what plain torch is in bf16, and a rounding."""
    limits = {r: 2 * found["plain_difference"] + _ONE_ROUNDING for r, found in measures.items()}
    wrong = tuple(r for r, m in measures.items() if not m["whole_difference"] <= limits[r])
    if wrong:
        found = max((measures[rank] for rank in wrong), key=lambda m: m["whole_difference"])
        return [
            Finding(
                "fail",
                f"{_name_layout(setting)}: in bf16 gradients are {found['scale']:.4f} times those "
                f"of fp32 and off by {found['whole_difference']:.1e}, plain torch in bf16 by "
                f"{found['plain_difference']:.1e} ({name_ranks(wrong, setting.hosts)})",
                _DO_NOT_TRAIN,
                wrong,
            )
        ]
    found = max(measures.values(), key=lambda m: m["whole_difference"])
    return [
        Finding(
            "pass",
            f"in bf16 {found['whole_difference']:.1e} from fp32, plain torch in bf16 "
            f"{found['plain_difference']:.1e}",
        )
    ]


def _name_layout(setting: Setting) -> str:
    dp_size = setting.world_size // setting.sp_size
    return f"{dp_size} data-parallel x {setting.sp_size} sequence-parallel"
