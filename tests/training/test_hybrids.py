"""Hybrids: layers that carry a state from token to token see one document, and whole ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.grids import WHOLE
from tests.training.gates import SEQUENCE_TOKENS, gate
from tests.training.test_model_gate import compare_losses_and_gradients
from training.config.sections import Model
from training.data.documents import find_documents
from training.model.gate import find_other_numbers
from training.model.recurrences import Recurrences, batches_of
from training.model.tiny import plain_model, tiny_config

HYBRIDS: list[tuple[str, dict[str, Any]]] = [
    ("qwen3_5_text", {}),
    ("qwen3_next", {"num_experts": 8, "num_experts_per_tok": 2}),
    ("granitemoehybrid", {"num_local_experts": 0, "shared_intermediate_size": 32}),
    ("granitemoehybrid", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ("lfm2", {"layer_types": ["conv", "conv", "full_attention"], "num_hidden_layers": 3}),
    ("falcon_h1", {"mamba_rms_norm": True}),
    *([("nemotron_h", {}), ("jamba", {})] if WHOLE else []),
]


@pytest.mark.parametrize(("model_type", "keys"), HYBRIDS)
def test_a_hybrid_has_the_numbers_of_transformers_or_needs_whole_sequences(model_type, keys):
    assert gate(model_type, **keys) is None
    compare_losses_and_gradients(model_type, **keys)
    model = Model(config={"model_type": model_type, **keys})
    config = AutoConfig.for_model(model_type, **keys)
    told = find_other_numbers(model, config, sequence_tokens=SEQUENCE_TOKENS, sp_size=2)
    assert told is not None and told.startswith(f"model: {model_type} is not supported: its layers")
    assert told.endswith("set train.sequence_parallel_size to 1")


def test_states_that_went_on_into_the_next_document_would_be_found(monkeypatch):
    begin = Recurrences.begin

    def in_whole_rows(self: Recurrences, documents: Any) -> None:
        length = documents.boundaries[-1] // 2
        rows = torch.arange(length).expand(2, length)
        begin(self, find_documents(rows, device=torch.device("cpu")))

    monkeypatch.setattr(Recurrences, "begin", in_whole_rows)
    message = gate("qwen3_5_text")
    assert message is not None and "its losses here differ from those of" in message


def test_documents_of_similar_lengths_are_run_together_and_padding_at_most_doubles_them():
    lengths = [1, 2, 3, 4, 5, 8, 9, 16, 17, 700, 1, 6]
    positions_BT = torch.cat([torch.arange(n) for n in lengths])[None]
    batches = batches_of(find_documents(positions_BT, device=torch.device("cpu")))
    assert [tuple(batch.places_NL.shape) for batch in batches] == [
        (2, 1), (1, 2), (2, 4), (3, 8), (2, 16), (1, 17), (1, 700)
    ]  # fmt: skip
    tokens = torch.cat([batch.tokens for batch in batches])
    assert torch.equal(tokens.sort().values, torch.arange(sum(lengths)))
    for batch in batches:
        assert torch.equal(batch.places_NL.flatten()[batch.is_token], batch.tokens)


def test_a_tiny_hybrid_is_small_and_its_documents_are_in_several_chunks():
    keys: dict[str, Any] = {"num_local_experts": 0}
    model = Model(config={"model_type": "granitemoehybrid", **keys})
    config = AutoConfig.for_model("granitemoehybrid", **keys)
    tiny = tiny_config(model, config, sequence_tokens=SEQUENCE_TOKENS)
    assert (tiny.mamba_chunk_size, tiny.mamba_d_head, tiny.mamba_d_state) == (8, 8, 16)
    assert sum(p.numel() for p in plain_model(model, tiny).parameters()) < 10_000_000
