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

A LayerNorm keeps D (w + w); an MLP of two weights 2 w F, or more with an activation that torch has
no kernel for.

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

    @property
    def layer_input(self) -> int:
        """What a layer with activation checkpointing keeps."""
        return self.tokens * self.arch.hidden * self.number_bytes

    @property
    def _norm(self) -> int:
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
            numbers += (_FP32 + normalised) * (arch.queries + arch.keys)
            scalars += arch.heads + arch.kv_heads
        return self.tokens * (numbers + _FP32 * scalars)

    def mlp(self, layer: Layer) -> int:
        """Kept by the second half of a layer."""
        if layer.mlp:
            return self._norms + self._of_part(layer.mlp) + self.tokens * self.mask_numbers
        numbers = self.arch.mlp_numbers * self.number_bytes * self.arch.intermediate
        norms = self._norms if self.arch.kind.norms > 1 else 0
        return norms + self.tokens * (numbers + _FP32 + self.mask_numbers)

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
        """Of a layer whose activations are not kept: input, norm, and three of the widest part."""
        mixer = layer.mixer.inner if layer.mixer else 0
        numbers = 2 * self.arch.hidden + 3 * max(self.arch.inner_of(layer), mixer)
        adapter = self.arch.adapter
        of_adapter = adapter.passing_bytes(self.tokens, self.number_bytes) if adapter else 0
        return self.tokens * numbers * self.number_bytes + of_adapter

    def mlp_gradient(self, layer: Layer) -> int:
        """Of one of the MLP's four."""
        return self.tokens * self.arch.inner_of(layer) * self.number_bytes

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
