"""What goes into a forward pass and what comes out of it.

B rows, S tokens of this rank's sequence shard, N = B * S, D hidden.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from training.data.documents import DocumentLayout
from training.data.stream import MicroBatch
from training.entrodrop.distillation import (
    OutputLayer,
    TopK,
    soft_cross_entropy,
    top_k_cross_entropy,
)


@dataclass(frozen=True)
class ModelInputs:
    """A micro-batch as the model takes it; vary it with `dataclasses.replace`."""

    ids_BS: Tensor
    """int64, the tokens to embed."""
    position_ids_BS: Tensor
    """int64, global positions that restart in each document."""
    targets_BS: Tensor
    """int64, -100 where there is none."""
    documents: DocumentLayout
    """Of the whole rows."""
    token_index_BS: Tensor | None = None
    """int64, the identity of each token, for dropout of channels."""
    document_tokens_BS: Tensor | None = None
    """int64, tokens of the piece of a document that each is in; rows that are whole need none."""
    visits: tuple[int, ...] = ()
    """The identity of each row, for dropout of layers."""
    replaced_BS: Tensor | None = None
    """bool, tokens whose embedding becomes 0, or the mean of all."""
    noise_BSD: Tensor | None = None
    """fp32 `[B, S, D]`, added to the embeddings."""
    max_weighted: int | None = None
    """How many positions can have a loss that is learnt from; None where only the device knows."""

    @classmethod
    def of(cls, batch: MicroBatch) -> ModelInputs:
        """The micro-batch, unchanged."""
        return cls(
            ids_BS=batch.ids_BS,
            position_ids_BS=batch.position_ids_BS,
            targets_BS=batch.targets_BS,
            documents=batch.documents,
            token_index_BS=batch.token_index_BP[:, :-1],
            document_tokens_BS=batch.document_tokens_BS,
            visits=batch.visits,
            max_weighted=batch.num_targets,
        )


@dataclass(frozen=True)
class TeacherView(ABC):
    """What a teacher made of a micro-batch: enough for its predictions, chunk by chunk."""

    weights_BS: Tensor
    """fp32, its part of each token's loss, from 0 to 1."""

    @abstractmethod
    def cross_entropy(
        self, hidden_ND: Tensor, layer: OutputLayer, token_weights_N: Tensor, *, softcap: float
    ) -> Tensor:
        """The weighted sum of the student's cross-entropies to its predictions, fp32."""


@dataclass(frozen=True)
class HiddenView(TeacherView):
    """Of a teacher with a forward pass of its own."""

    hidden_BSD: Tensor
    """Of the last layer."""
    layer: OutputLayer

    def cross_entropy(
        self, hidden_ND: Tensor, layer: OutputLayer, token_weights_N: Tensor, *, softcap: float
    ) -> Tensor:
        own_ND = self.hidden_BSD.flatten(0, 1)
        return soft_cross_entropy(
            hidden_ND, layer, own_ND, self.layer, token_weights_N, softcap=softcap
        )


@dataclass(frozen=True)
class TopKView(TeacherView):
    """Of a teacher whose likeliest tokens are stored."""

    top_k_BS: TopK

    def cross_entropy(
        self, hidden_ND: Tensor, layer: OutputLayer, token_weights_N: Tensor, *, softcap: float
    ) -> Tensor:
        top_k_N = TopK(*(column.flatten(0, 1) for column in self.top_k_BS))
        return top_k_cross_entropy(hidden_ND, layer, top_k_N, token_weights_N, softcap=softcap)


class Scored(NamedTuple):
    """What a forward pass found at each position."""

    nll_BS: Tensor
    """fp32, nats; in training with label smoothing and z-loss, if the head has them."""
    entropy_BS: Tensor
    """fp32, nats."""


@dataclass(frozen=True)
class ModelRegularisation:
    """What a regulariser changes in model and optimizer, when they are built."""

    label_smoothing: float = 0.0
    """Share of each target that is spread over the vocabulary."""
    hidden_dropout: float = 0.0
    """Rate at which channels are dropped after every layer."""
    mlp_dropout: float = 0.0
    """Likewise before the last matrix of every MLP."""
    attention_output_dropout: float = 0.0
    """Likewise behind every attention."""
    stochastic_depth: float = 0.0
    """Rate at which the last layer is skipped."""
    replaces_by_mean: bool = False
    """Replaced embeddings become the vocabulary's mean, not 0."""
    weight_decay: float | None = None
    """In place of the optimizer's."""
    l2_sp: float = 0.0
    """Decay towards the weights that the run began with."""


NO_REGULARISATION = ModelRegularisation()
