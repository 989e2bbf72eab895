"""Bytes that the forward pass keeps for the backward pass, and that each needs temporarily.

The idea is from Korthikanti et al., Reducing Activation Recomputation in Large Transformer
Models (arXiv 2205.05198, section 4): add up what each module saves. Their layer, `s b h (34 + 5 a s
/ h)` bytes, is one with GeLU, dropout and a whole attention matrix; ours has RMSNorm, rotary
attention that keeps no matrix, and a gated MLP. So for each token of a rank's shard, with hidden
size D, Q numbers in all queries and K in all keys, MLP size F, w bytes a number:

    norm, twice       D (4 + w + w)     its input in fp32, the normalised input, its output
    queries' norm     Q (4 + w)         (Qwen3) input in fp32, the normalised input
    keys' norm        K (4 + w)         (Qwen3)
    attention         w (Q + 2 K + Q)   queries, keys, values, output; 2 Q in place of 2 K on a GPU,
                                        where keys and values are repeated for all heads
    gated MLP         4 w F             gate, silu(gate), up, their product

A LayerNorm keeps D (w + w), and so do Liger's norms, whose MLPs keep 3 w F (`model.kernels`). An
MLP of two weights keeps 2 w F, or more with an activation that torch has no kernel for.

Beside an adapter the weights of norms are frozen, and normalised inputs are not kept; products keep
their inputs, which DeepSpeed's own saves whether its weight is trained or not. `adapter.py` says
what comes on top.

What experts and recurrences keep is in `parts.py`; a recurrence is taken to run on whole samples.

With sequence parallelism, and on a CPU, the attention's output is kept twice: as attention left it
and as the next product reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

from launch.planner.architecture import Architecture
from launch.planner.parts import Layer, Part

# training/entrodrop/head.py and softmax_rows.py: one chunk, on a GPU and elsewhere, and one block
_CUDA_CHUNK_TOKENS = 1024
_CHUNK_LOGITS = 1 << 25
_BLOCK_LOGITS = 1 << 19
_FP32 = 4


@dataclass(frozen=True)
class Activations:
    """Bytes on one rank."""

    arch: Architecture
    tokens: int
    """Of a micro-batch on this rank."""
    number_bytes: int
    on_gpu: bool
    shards_sequence: bool
    mask_numbers: int = 0
    """Of a token in a layer: channels that may drop, a byte each."""
    tiles_mlp: bool = False
    """`training/model/tiled_mlp.py`: of an MLP no more than a tile is there at a time."""
    offloads: bool = False
    """Inputs of layers are on the host."""
    fused: bool = False
    """Liger's norms keep their input as it is, its MLPs no activation of the gate."""

    @property
    def layer_input(self) -> int:
        """What a layer with activation checkpointing keeps."""
        return self.tokens * self.arch.hidden * self.number_bytes

    @property
    def kept_input(self) -> int:
        """The part of it that stays on the GPU."""
        return 0 if self.offloads else self.layer_input

    @property
    def is_tiled(self) -> bool:
        """Whether there is more than one tile, of as many tokens as hidden channels."""
        return self.tiles_mlp and self.tokens > self.arch.hidden

    @property
    def mlp_tokens(self) -> int:
        """Whose inner channels exist at a time."""
        return self.arch.hidden if self.is_tiled else self.tokens

    @property
    def _norm(self) -> int:
        if self.fused:  # input and output
            return 2 * self.layer_input
        # the normalised input is for the gradient of the norm's weight
        kept = 2 if self.arch.adapter is None else 1
        numbers = kept * self.number_bytes + (0 if self.arch.kind.layer_norm else _FP32)
        return self.tokens * self.arch.hidden * numbers

    @property
    def _norms(self) -> int:
        """Of half a layer: before it, and in some families behind it too."""
        return self._norm * (2 if self.arch.kind.norms > 2 else 1)

    def mixing(self, layer: Layer) -> int:
        """Kept by the first half of a layer."""
        attention = self._attention if layer.attends else 0
        mixer = self._of_part(layer.mixer) if layer.mixer else 0
        return self._norms + attention + mixer

    def _of_part(self, part: Part) -> int:
        return self.tokens * (part.kept * self.number_bytes + part.kept_fp32 * _FP32)

    @property
    def _attention(self) -> int:
        arch, width = self.arch, self.number_bytes
        outputs = 1 if self.on_gpu and not self.shards_sequence else 2
        numbers = width * (arch.queries + 2 * arch.keys + outputs * arch.queries)
        if arch.kind.query_gate:
            numbers += 2 * width * arch.queries  # the gate and its product
        scalars = 1 + arch.heads  # the norm's 1 / rms, and ln sum e^score of each head
        if arch.qk_norm:
            normalised = width if arch.adapter is None else 0
            is_fused = self.fused and arch.qk_norm == "head"
            kept = width if is_fused else _FP32 + normalised
            numbers += kept * (arch.queries + arch.keys)
            scalars += arch.heads + arch.kv_heads
        return self.tokens * (numbers + _FP32 * scalars)

    def mlp(self, layer: Layer) -> int:
        """Kept by the second half of a layer."""
        norms = self._norms if layer.mlp or self.arch.kind.norms > 1 else 0
        scalars = 0 if layer.mlp else _FP32
        inner = 0 if self.is_tiled else self._inner(layer)
        return norms + inner + self.tokens * (scalars + self.mask_numbers)

    def _inner(self, layer: Layer) -> int:
        """Of an MLP, for as many tokens as it takes at a time."""
        if layer.mlp:
            return self._of_part(layer.mlp) * self.mlp_tokens // self.tokens
        numbers = (3 if self.fused else self.arch.mlp_numbers) * self.arch.intermediate
        return self.mlp_tokens * numbers * self.number_bytes

    def tile(self, layer: Layer) -> int:
        """While a tile goes back: what it keeps, two gradients, and those of all tiles' inputs."""
        return self._inner(layer) + 2 * self.mlp_gradient(layer) + self.layer_input

    def layer(self, layer: Layer) -> int:
        """Kept by a whole one."""
        adapter = self.arch.adapter
        of_adapter = adapter.kept_bytes(self.number_bytes) if adapter else 0
        return self.mixing(layer) + self.mlp(layer) + self.tokens * of_adapter

    @property
    def ends(self) -> int:
        """Kept outside the layers: cosines and sines, the last norm, and what layers embed."""
        rotary = 2 * self.tokens * self.arch.head * self.number_bytes
        # embedded, projected, normalised and added
        beside = self.tokens * self.arch.layers * self.arch.beside * (4 * self.number_bytes + _FP32)
        return rotary + self._norm + self.tokens * _FP32 + beside

    def forward_extra(self, layer: Layer) -> int:
        """Of a layer whose activations are not kept: input, norm, and three of the widest part.

        With tiles the MLP has its outputs, once in parts and once whole, beside those of a tile.
        """
        arch = self.arch
        mlp, mixer = self.mlp_tokens * arch.inner_of(layer), layer.mixer.inner if layer.mixer else 0
        inside = max(3 * mlp, 3 * self.tokens * mixer)
        if self.is_tiled:
            attention = self.tokens * (2 * arch.queries + 2 * arch.keys)
            inside = max(3 * mlp + 2 * self.tokens * arch.hidden, attention)
        adapter = arch.adapter
        of_adapter = adapter.passing_bytes(self.tokens, self.number_bytes) if adapter else 0
        return (2 * self.tokens * arch.hidden + inside) * self.number_bytes + of_adapter

    def mlp_gradient(self, layer: Layer) -> int:
        """Of one of the MLP's four."""
        return self.mlp_tokens * self.arch.inner_of(layer) * self.number_bytes

    @property
    def norm_gradient(self) -> int:
        """While a norm goes back: an RMSNorm of transformers has four products in fp32."""
        if self.arch.kind.layer_norm or self.fused:
            return self.layer_input
        return 4 * self.tokens * self.arch.hidden * _FP32

    @property
    def attention_gradient(self) -> int:
        """Of its output, queries, keys and values."""
        return 2 * self.tokens * (self.arch.queries + self.arch.keys) * self.number_bytes

    @property
    def hidden_gradients(self) -> int:
        """Of the residual stream and of what is added to it."""
        return 2 * self.layer_input

    @property
    def head_chunk(self) -> int:
        """Logits of a chunk with what their statistics take; freed when the head has run."""
        vocab = self.arch.vocab
        most_tokens = _CUDA_CHUNK_TOKENS if self.on_gpu else _CHUNK_LOGITS // vocab
        chunk_tokens = max(1, min(most_tokens, self.tokens))
        numbers = chunk_tokens * (vocab + self.arch.hidden) * self.number_bytes
        if self.on_gpu:  # Triton kernels read the chunk in place
            return numbers
        copies = 2 if self.number_bytes == _FP32 else 3
        block_tokens = max(1, min(_BLOCK_LOGITS // vocab, chunk_tokens))
        return numbers + copies * block_tokens * vocab * _FP32
