"""A step of a tiny model of any family on two ranks, against plain transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import deepspeed
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.training.gates import SEQUENCE_TOKENS
from tests.training.layouts import tiny_recipe
from tests.training.measured_layouts import CapturingEngine
from training.config.sections import Model
from training.data.documents import find_documents
from training.model.causal_lm import resolve_model_config
from training.model.engine import Engine, build_engine
from training.model.gate import find_other_numbers, soften_attention
from training.model.inputs import NO_REGULARISATION, ModelInputs
from training.model.tiny import VOCAB_SIZE, plain_model, tiny_config
from training.ranks.dist import init_layout

_MOST = 1e-5
"""Of a loss and of a gradient, relative to 1 and themselves."""
LENGTHS = ((7, 11, 1, 9, 4), (3, 20, 1, 8))
"""Tokens of the documents of each row; some lie on both sides of the middle."""


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and positions `[2, 32]`; the first row is one token alone, for the same experts."""
    ids_BT = torch.randint(0, VOCAB_SIZE, (2, 32), generator=torch.Generator().manual_seed(0))
    ids_BT[0] = 5
    positions_BT = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS])
    return ids_BT, positions_BT


def document_tokens() -> torch.Tensor:
    """Of the document of each token, `[2, 32]`."""
    return torch.stack([row.repeat_interleave(row) for row in map(torch.tensor, LENGTHS)])


def measure_all(configs: dict[str, dict[str, Any]], sp_size: int) -> dict[str, str | None]:
    """By name, what differs from plain transformers on this rank; None where nothing does."""
    found = {}
    for name, config in configs.items():
        try:
            found[name] = measure(config, sp_size=sp_size)
        except Exception as error:  # of any kind: the model's own code
            found[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        finally:
            forget_shards()
    return found


def measure(base: dict[str, Any], *, sp_size: int) -> str | None:
    """One step of two ranks in fp32: losses and all gradients."""
    layout = init_layout(sp_size=sp_size)
    changes: dict[str, Any] = {"train__sequence_parallel_size": sp_size, "model__config": base}
    changes |= {"train__micro_batch_samples": sp_size, "model__disable_dropout": True}
    recipe = tiny_recipe(**changes)
    config = tiny_config(
        recipe.model,
        resolve_model_config(recipe.model, vocab_size=VOCAB_SIZE, dtype=torch.float32),
        sequence_tokens=32,
    )
    engine = build_engine(
        recipe, config, layout=layout, num_micro_steps=1, regularisation=NO_REGULARISATION
    )
    engine = CapturingEngine(**vars(engine))
    torch.manual_seed(1)
    plain = plain_model(recipe.model, config).eval()
    for weight in plain.parameters():
        weight.data += torch.randn_like(weight) * 0.1
    soften_attention(plain)
    put_all(engine, dict(plain.named_parameters()))
    ids_BT, positions_BT = rows()

    def plain_nlls() -> torch.Tensor:
        nlls = []
        for ids_T, lengths in zip(ids_BT, LENGTHS, strict=True):
            for ids in ids_T.split(lengths):
                plain(
                    input_ids=ids[None, :1], use_cache=False
                )  # a dynamic RoPE forgets longer ones
                logits = plain(input_ids=ids[None], use_cache=False).logits[0]
                nlls.append(F.cross_entropy(logits, ids, reduction="none"))
        return torch.cat(nlls).view(2, -1)

    nll_BT = plain_nlls()
    nll_BT.sum().backward()
    own = (slice(None), slice(16 * layout.rank, 16 * layout.rank + 16))
    if sp_size == 1:
        own = (slice(layout.rank, layout.rank + 1), slice(None))
    seen_BT = positions_BT if sp_size > 1 else positions_BT[own]
    inputs = ModelInputs(
        ids_BS=ids_BT[own],
        position_ids_BS=positions_BT[own].contiguous(),
        targets_BS=ids_BT[own],
        document_tokens_BS=document_tokens()[own],
        documents=find_documents(seen_BT, device=layout.device),
    )
    engine.ds.eval()
    found = engine.score(inputs)
    engine.backward_and_step(found.nll_BS.sum(), divisor=1.0, lr=0.0)
    apart_BS = (found.nll_BS - nll_BT[own]).detach().abs()
    of_losses = float((apart_BS / (1.0 + nll_BT[own].detach())).max())
    differences = {}
    for name, weight in plain.named_parameters():
        if not weight.requires_grad:
            continue
        grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        differences[name] = relative(engine.captured[name], grad)
    engine.ds.destroy()
    wrong = beyond_rounding(differences, plain, lambda: plain_nlls().sum())
    if not of_losses < _MOST:
        wrong["nll"] = of_losses
    return str(wrong) if wrong else None


def put_all(engine: Engine, weights: dict[str, torch.nn.Parameter]) -> None:
    """Those that the model keeps frozen, such as what balances its experts, too."""
    engine.put(weights)
    frozen = {n: w for n, w in engine.model.lm.named_parameters() if not w.requires_grad}
    for name, parameter in frozen.items():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
            parameter.copy_(weights[name])


def beyond_rounding(
    apart: dict[str, float], plain: torch.nn.Module, total: Callable[[], torch.Tensor]
) -> dict[str, float]:
    """Of differences of gradients, by weight, those that rounding does not explain.

    Some models amplify it, and plain transformers' own gradients in fp32 are further than 1e-5 from
    those in float64. Both sides round alike, so they differ by no more than twice that distance.

    Args:
        plain: with its gradients; becomes float64.
        total: its loss.
    """
    wrong = {name: value for name, value in apart.items() if not value < _MOST}
    if not wrong:
        return {}
    grads = {n: w.grad for n, w in plain.named_parameters() if n in wrong and w.grad is not None}
    plain.zero_grad()
    if isinstance(plain, PreTrainedModel):
        plain.set_experts_implementation("eager")  # grouped products know no float64
    plain.double()
    total().backward()
    exact = {n: w.grad for n, w in plain.named_parameters() if n in grads and w.grad is not None}
    rounding = {name: relative(grads[name], grad) for name, grad in exact.items()}
    return {name: v for name, v in wrong.items() if not v < 2.0 * rounding.get(name, 0.0)}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Difference of two gradients of a sum; of a bias of keys they are 0 but for rounding."""
    return float((found - expected).norm() / (expected.norm() + 1.0))


def forget_shards() -> None:
    """DeepSpeed shards sequences once per process."""
    from deepspeed.runtime.sequence_parallel import parallel_state_sp

    parallel_state_sp._SEQUENCE_PARALLEL_GROUP = None
    parallel_state_sp._SEQUENCE_DATA_PARALLEL_GROUP = None


KEYS: dict[str, dict[str, Any]] = {
    "bitnet": {"num_key_value_heads": 10},
    "cohere_compass_text": {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4},
    "deepseek_v2": {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2},
    "falcon": {"num_attention_heads": 64, "hidden_size": 4096},
    "hunyuan_v1_dense": {"num_key_value_heads": 8, "head_dim": 128},
    "hunyuan_v1_moe": {"num_key_value_heads": 8, "head_dim": 128},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"num_key_value_heads": 8, "head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
}
"""By family, what its class leaves open, or sets to what no published model has."""
FAMILIES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def config_of(family: str) -> dict[str, Any]:
    """A recipe's configuration of the family by its defaults."""
    return {"model_type": family, **KEYS.get(family, {})}


def refusal(family: str) -> str | None:
    """What a start says of it, without its dropout; None where it trains."""
    model = Model(config=config_of(family), disable_dropout=True)
    try:
        config = resolve_model_config(model, vocab_size=VOCAB_SIZE, dtype=torch.float32)
    except ValueError as error:
        return str(error)
    return find_other_numbers(model, config, sequence_tokens=SEQUENCE_TOKENS)
