"""What a model is made of: weights of its layers and around them, and sizes of activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from launch.planner.adapter import AdapterSizes
from launch.planner.families import CARRY_STATES, FAMILIES, Family
from launch.planner.parts import Layer


@dataclass(frozen=True)
class Architecture:
    """A decoder: an embedding, layers, a norm and an output layer."""

    family: str
    hidden: int
    intermediate: int
    """Of an MLP without experts; 0 where all layers have some."""
    stack: tuple[Layer, ...]
    heads: int
    kv_heads: int
    head: int
    """Numbers of one head."""
    vocab: int
    tied: bool
    """The head's weight is the embedding's."""
    positions: int
    """Learned ones."""
    beside: int
    """Numbers of a token that each layer embeds for itself."""
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: Literal["", "head", "all"]
    """Norms of queries and keys, of each head or of all together."""
    mlp_numbers: int
    """Kept by the MLP for each of its width."""
    source: str
    """Where these sizes come from."""
    adapter: AdapterSizes | None = None
    """Of each layer, whose own weights are then frozen."""

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self.stack)

    @property
    def is_plain(self) -> bool:
        """All layers are made as those of llama."""
        return set(self.stack) == {Layer()}

    @property
    def carries_state(self) -> bool:
        """Some layers go through whole documents, token by token."""
        return self.kind.mixer in CARRY_STATES and any(layer.mixer for layer in self.stack)

    @property
    def queries(self) -> int:
        """Numbers of a token's queries, all heads."""
        return self.heads * self.head

    @property
    def keys(self) -> int:
        """Numbers of a token's keys; its values have as many."""
        return self.kv_heads * self.head

    @property
    def kind(self) -> Family:
        """What its family has in common."""
        return FAMILIES[self.family]

    @property
    def norm(self) -> int:
        """Numbers in a norm of the hidden size."""
        return self.hidden * (2 if self.kind.layer_norm else 1)

    def weights_of(self, layer: Layer) -> tuple[int, ...]:
        """Numbers in each module of a layer, in the order in which the modules run."""
        return (*self.weights_before_mlp(layer), *self.weights_from_mlp(layer))

    def weights_before_mlp(self, layer: Layer) -> tuple[int, ...]:
        """Of norms, mixer and attention."""
        norms = (self.norm,) * self.kind.norms
        mixer = layer.mixer.weights if layer.mixer else ()
        attention = self._attention_weights if layer.attends else ()
        return (*norms[:1], *mixer, *attention, *norms[1:3])

    def weights_from_mlp(self, layer: Layer) -> tuple[int, ...]:
        """Of the MLP, and of a norm behind it."""
        return (*self.mlp_weights(layer), *(self.norm,) * (self.kind.norms - 3))

    def inner_of(self, layer: Layer) -> int:
        """Numbers of a token in the MLP's widest activation."""
        return layer.mlp.inner if layer.mlp else self.intermediate

    @property
    def _attention_weights(self) -> tuple[int, ...]:
        query_norm, key_norm = {
            "": ((), ()),
            "head": ((self.head,), (self.head,)),
            "all": ((self.queries,), (self.keys,)),
        }[self.qk_norm]
        asked = self.queries * (2 if self.kind.query_gate else 1)
        query, key = ((self.hidden + self.qkv_bias) * n for n in (asked, self.keys))
        out = (self.queries + self.out_bias) * self.hidden
        if self.kind.fused_qkv:
            return (query + 2 * key, *query_norm, *key_norm, out)
        sinks = (self.heads,) if self.kind.sinks else ()
        return (*sinks, query, *query_norm, key, *key_norm, key, out)

    def mlp_weights(self, layer: Layer) -> tuple[int, ...]:
        """Up with what comes beside it, then down."""
        if layer.mlp:
            return layer.mlp.weights
        up = (self.hidden + self.mlp_bias) * self.intermediate
        down = (self.intermediate + self.mlp_bias) * self.hidden
        ups = (up,) * (2 if self.kind.gated else 1)
        return (sum(ups), down) if self.kind.fused_gate else (*ups, down)

    @property
    def linear_sizes(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's linear layers, in the order in which they run."""
        hidden, inner = self.hidden, self.intermediate
        return {
            "q_proj": (hidden, self.queries),
            "k_proj": (hidden, self.keys),
            "v_proj": (hidden, self.keys),
            "o_proj": (self.queries, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }

    @property
    def adapter_weights(self) -> tuple[int, ...]:
        """Numbers in each weight of a layer's adapter."""
        return self.adapter.weights if self.adapter else ()

    @property
    def trained(self) -> int:
        """Numbers that are not frozen."""
        return self.layers * sum(self.adapter_weights) if self.adapter else self.parameters

    @property
    def embedding_weight(self) -> int:
        return self.vocab * self.hidden

    @property
    def beside_weights(self) -> tuple[int, ...]:
        """What layers embed for themselves: a table of all, a projection and its norm."""
        if not self.beside:
            return ()
        all_layers = self.layers * self.beside
        return (self.vocab * all_layers, all_layers * self.hidden, self.beside)

    @property
    def parameters(self) -> int:
        """All of the model itself, a tied weight once."""
        ends = self.embedding_weight * (1 if self.tied else 2) + self.positions * self.hidden
        norms = self.norm * (2 if self.kind.embedding_norm else 1)
        bias = self.vocab if self.kind.head_bias else 0
        layers = sum(map(sum, map(self.weights_of, self.stack)))
        return layers + ends + norms + bias + sum(self.beside_weights)

    @property
    def active_parameters(self) -> int:
        """Those that a token meets: all but the experts that it is not sent to."""
        return self.parameters - sum(layer.mlp.idle for layer in self.stack if layer.mlp)

    @property
    def multiplied_weights(self) -> int:
        """Of a token's products: those of layers that it meets, and the output layer's."""
        layers = sum(map(sum, map(self.weights_of, self.stack)))
        idle = self.parameters - self.active_parameters
        return layers - idle + self.embedding_weight + sum(self.beside_weights[1:])
