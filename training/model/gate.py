"""Whether losses here are those of plain transformers, tried on a tiny model of the same kind.

B rows, T tokens of a row (plain_T: of a document but its last).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from training.config.adapter import Adapter
from training.config.sections import Model
from training.data.documents import find_documents
from training.data.stream import IGNORE
from training.model.adapter import AdapterError, inject_adapter
from training.model.attention import ATTENTION_NAME, register_attention
from training.model.causal_lm import CausalLMWithEntropy
from training.model.inputs import ModelInputs
from training.model.offloading import checkpoint_layers
from training.model.older_attention import allow_construction
from training.model.own_dropout import remedy
from training.model.plain_losses import plain_scores
from training.model.shard_check import refuse_mixing
from training.model.tiny import VOCAB_SIZE, plain_model, tiny_config

TOLERANCE_NATS = 1e-4
"""Rounding moved no family's losses by more than 1e-5 (transformers 5.24)."""
_ROWS = ((9, 1, 14), (17, 7))
"""Tokens of the documents of each row."""
_MATRIX_GAIN, _VECTOR_NOISE = 1.5, 0.3
_MAX_CHARACTERS = 300
_PART = "partial_rotary_factor"
_OUR_WORDS = (ATTENTION_NAME, "document_layout")


def find_other_numbers(
    model: Model,
    config: PretrainedConfig,
    *,
    sequence_tokens: int,
    sp_size: int = 1,
    trains: bool = True,
    adapter: Adapter | None = None,
) -> str | None:
    """Compare losses and entropies of packed documents with plain transformers; a second or so.

    A tiny model of the configuration, with random numbers in all its weights, is run as it would
    be trained, and by transformers alone, with eager attention, document by document; both in fp32
    on the CPU. Needs no weights and no other rank.

    Args:
        config: of the model as it would be trained.
        sequence_tokens: of a sample.
        sp_size: ranks that share one.
        trains: try a step in training mode, too.
        adapter: what would be trained beside the weights.

    Returns:
        Why the model cannot be trained here, in a sentence; None where the numbers are the same.
    """
    kind = f"model: {config.model_type}"
    with _aside():
        try:
            difference = measure_difference(
                model,
                config,
                sequence_tokens=sequence_tokens,
                sp_size=sp_size,
                trains=trains,
                adapter=adapter,
            )
        except _NotComparableError as error:
            return f"{kind} cannot be compared with plain transformers: {error}"
        except AdapterError as error:
            return str(error)
        except Exception as error:  # of any kind: the forward pass is the model's own code
            return f"{kind} is not supported: {_of_the_attention(error) or _one_line(error)}"
    if difference <= TOLERANCE_NATS:
        return None
    return (
        f"{kind} is not supported: on packed documents its losses here differ from those of "
        f"transformers by up to {difference:.2g} nats (tried on a tiny model of this configuration)"
    )


def measure_difference(
    model: Model,
    config: PretrainedConfig,
    *,
    sequence_tokens: int,
    sp_size: int,
    trains: bool = True,
    adapter: Adapter | None = None,
) -> float:
    """The largest difference of a loss or an entropy, in nats; infinity for NaN.

    A new adapter makes none.
    """
    try:
        tiny = tiny_config(model, config, sequence_tokens=sequence_tokens)
        plain = plain_model(model, tiny).eval()
        _randomise(plain)
        inputs = _packed_documents()
        lengths = [n for row in _ROWS for n in row]
        expected = [plain_scores(plain, ids) for ids in inputs.ids_BS.flatten().split(lengths)]
    except Exception as error:  # of any kind, as above
        raise _NotComparableError(_one_line(error)) from error
    _try_partial_rotation(model, tiny)
    register_attention()
    allow_construction(config)
    lm = plain_model(model, tiny, attention=ATTENTION_NAME)
    lm.load_state_dict(plain.state_dict())
    if model.activation_checkpointing:
        checkpoint_layers(lm, offloads=model.activation_offloading)
    if adapter is not None:
        inject_adapter(lm, adapter, seed=0)
    ours = CausalLMWithEntropy(lm).eval()
    with torch.no_grad():
        found = ours(inputs)
    if trains:
        _try_training(ours, inputs)
    _try_last_position(ours, sequence_tokens=sequence_tokens)
    if sp_size > 1:
        refuse_mixing(ours, inputs)
    is_target_BT = inputs.targets_BS != IGNORE
    return max(
        _largest(ours_BT[is_target_BT] - torch.cat(plain_T))
        for ours_BT, plain_T in zip(found, zip(*expected, strict=True), strict=True)
    )


class _NotComparableError(Exception):
    """Plain transformers has no numbers for a tiny model of the configuration."""


def _packed_documents() -> ModelInputs:
    generator = torch.Generator().manual_seed(0)
    num_rows, length = len(_ROWS), sum(_ROWS[0])
    ids_BT = torch.randint(0, VOCAB_SIZE, (num_rows, length), generator=generator)
    positions_BT = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in _ROWS])
    targets_BT = F.pad(ids_BT[:, 1:], (0, 1), value=IGNORE)
    begins_BT = F.pad(positions_BT[:, 1:], (0, 1)) == 0  # the next token is of another document
    return ModelInputs(
        ids_BS=ids_BT,
        position_ids_BS=positions_BT,
        targets_BS=targets_BT.masked_fill(begins_BT, IGNORE),
        documents=find_documents(positions_BT, device=torch.device("cpu")),
        document_tokens_BS=torch.tensor([[n for n in row for _ in range(n)] for row in _ROWS]),
        token_index_BS=torch.arange(ids_BT.numel()).view_as(ids_BT),
    )


def _randomise(lm: PreTrainedModel) -> None:
    """All numbers, so that no norm, bias, sink or cap happens to have no effect."""
    generator = torch.Generator().manual_seed(1)
    for weight in lm.state_dict().values():  # also buffers that are saved
        if not weight.is_floating_point():
            continue
        noise = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            weight.copy_(noise * _MATRIX_GAIN / weight.shape[-1] ** 0.5)
        else:
            weight.add_(noise * _VECTOR_NOISE)
    soften_attention(lm)


def soften_attention(lm: PreTrainedModel) -> None:
    """Of normalised queries that nothing scales: rounding would decide where it is so sharp."""
    modules: Iterator[Any] = lm.modules()
    for module in modules:
        if getattr(module, "scaling", None) == 1.0 and hasattr(module, "q_norm"):
            module.q_norm.weight.data.mul_(module.head_dim**-0.5)


def _try_partial_rotation(model: Model, tiny: PretrainedConfig) -> None:
    """Most kinds of model keep a `partial_rotary_factor` that their code does not read.

    Raises:
        ValueError: for a recipe that sets it in vain. In a folder it is what transformers reads.
    """
    factors = [value for value in _find(model.config, _PART) if value not in (None, 1)]
    if not factors:
        return
    half, whole = (_frequencies(model, tiny, factor) for factor in (0.5, 1.0))
    if len(half) == len(whole) and all(map(torch.equal, half, whole)):
        raise ValueError(
            f"model.config.{_PART} {factors[0]} has no effect: it rotates all numbers of a head; "
            "remove it, or take a model_type that reads it, such as phi3 or glm4"
        )


def _frequencies(model: Model, config: PretrainedConfig, factor: float) -> list[Tensor]:
    """Of the rotary embeddings, with another factor."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    if hasattr(text, _PART):
        setattr(text, _PART, factor)
    rope = getattr(text, "rope_parameters", None) or {}
    for each in (rope, *rope.values()):
        if isinstance(each, dict) and _PART in each:
            each[_PART] = factor
            if each.get("rope_type") == "longrope":  # its factors are of another number
                each["rope_type"] = "default"
    buffers = plain_model(model, config).named_buffers()
    return [buffer for name, buffer in buffers if name.endswith("inv_freq")]


def _find(tree: Any, key: str) -> list[Any]:
    """All its values in nested mappings."""
    if not isinstance(tree, dict):
        return []
    below = [found for value in tree.values() for found in _find(value, key)]
    return [tree[key], *below] if key in tree else below


def _try_training(ours: CausalLMWithEntropy, inputs: ModelInputs) -> None:
    """Parts that differ in training must work here too, without random numbers of their own.

    Raises:
        ValueError: for such as draw some: losses would depend on the layout.
    """
    ours.train()
    losses = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        nll_BT, _ = ours(inputs)
        losses.append(nll_BT)
    losses[0].sum().backward()
    ours.eval()
    if not torch.equal(*losses):
        raise ValueError(
            "it draws random numbers of its own in training, others on each layout; "
            + remedy(ours.lm.config)
        )


@torch.no_grad()
def _try_last_position(ours: CausalLMWithEntropy, *, sequence_tokens: int) -> None:
    """Of the longest document that there may be; positions that are learned end somewhere.

    Raises:
        ValueError: naming the sample lengths that work.
    """
    known = getattr(ours.lm.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(known, int) or known >= sequence_tokens:
        return
    positions_BT = torch.tensor([[0, sequence_tokens - 1]])
    inputs = ModelInputs(
        ids_BS=torch.zeros_like(positions_BT),
        position_ids_BS=positions_BT,
        targets_BS=torch.zeros_like(positions_BT),
        documents=find_documents(positions_BT, device=torch.device("cpu")),
    )
    try:
        ours(inputs)
    except Exception:  # of any kind, as above
        raise ValueError(
            f"its positions are learned and end at max_position_embeddings {known}; "
            f"data.sequence_tokens is {sequence_tokens}, and can be up to {known}"
        ) from None


def _largest(differences: Tensor) -> float:
    return float(differences.abs().nan_to_num(torch.inf).max())


def _of_the_attention(error: Exception) -> str | None:
    """A model with a table of attentions of its own, or without `**kwargs`, says only our words."""
    if isinstance(error, ValueError) or not any(word in str(error) for word in _OUR_WORDS):
        return None
    return "this model does not pass keyword arguments on to its attention"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if not isinstance(error, ValueError):  # its words may say little: KeyError is a name alone
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."


@contextmanager
def _aside() -> Iterator[None]:
    """Leave no trace: random states, DeepSpeed's hold on transformers, lines on the screen."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        logging.set_verbosity(verbosity)
