"""Every family trains on the numbers of plain transformers, or is refused before its weights."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoConfig, LlamaForCausalLM

from docs.generate_models_table import PAGE, trained_families
from tests.distributed import run_ranks
from tests.grids import WHOLE
from tests.training.families import FAMILIES, beyond_rounding, config_of, refusal, relative
from tests.training.gates import FULL, SEQUENCE_TOKENS, gate
from tests.training.refusals import check, message_without_a_model
from tests.training.short_runs import short_recipe
from training.config.sections import Model
from training.data.documents import find_documents
from training.model.attention import ATTENTION_NAME
from training.model.causal_lm import CausalLMWithEntropy, resolve_model_config
from training.model.gate import find_other_numbers, soften_attention
from training.model.inputs import ModelInputs
from training.model.tiny import VOCAB_SIZE, plain_model, tiny_config

TRAINS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
      "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
    ("qwen2", {}),
    ("qwen3", {"tie_word_embeddings": True}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 32}),
    ("gemma2", {"sliding_window": 8, "attn_logit_softcapping": 1.0}),
    ("gemma3_text", {"sliding_window": 8}),
    ("olmo3", {"sliding_window": 32}),
    ("exaone4", {"sliding_window": 32, "sliding_window_pattern": 2, "num_hidden_layers": 4}),
    ("cohere2", {"sliding_window": 32}),
    ("mixtral", {}),
    ("qwen3_moe", {"decoder_sparse_step": 2, "mlp_only_layers": [1]}),
    ("olmo2", {}),
    ("helium", {}),
    ("gemma3_text", {"sliding_window": 4096}),
    ("smollm3", {"no_rope_layer_interval": 2}),
    ("granite", {"residual_multiplier": 0.3, "embedding_multiplier": 7.0}),
    ("granite", {"logits_scaling": 4.0}),
    ("cohere", {}),
    ("gemma3_text", {"sliding_window": 4096, "final_logit_softcapping": 2.0}),
    ("phi", {}),
    ("phi3", {"partial_rotary_factor": 0.5}),
    ("gpt_oss", {"sliding_window": 32}),
    ("granite_swa", FULL),
    ("deepseek_v3", {"hidden_size": 8192}),
    ("mimo_v2_flash", {}),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "keys"), TRAINS)
def test_a_family_with_the_numbers_of_transformers_passes(model_type, keys):
    assert gate(model_type, **keys) is None
    compare_losses_and_gradients(model_type, **keys)


def compare_losses_and_gradients(model_type: str, **keys: Any) -> None:
    """The plain reference, on other documents and weights than the gate's own."""
    torch.manual_seed(7)
    model = Model(config={"model_type": model_type, **keys})
    config = tiny_config(
        model, AutoConfig.for_model(model_type, **keys), sequence_tokens=SEQUENCE_TOKENS
    )
    plain, lm = (plain_model(model, config, attention=a) for a in (None, ATTENTION_NAME))
    for weight in plain.parameters():
        weight.data += torch.randn_like(weight) * 0.1
    soften_attention(plain)
    lm.load_state_dict(plain.state_dict())
    lengths = (3, 20, 1, 6)
    positions_BT = torch.cat([torch.arange(n) for n in lengths])[None]
    ids_BT = torch.randint(0, VOCAB_SIZE, positions_BT.shape)
    targets_BT = torch.randint(0, VOCAB_SIZE, positions_BT.shape)
    inputs = ModelInputs(
        ids_BS=ids_BT,
        position_ids_BS=positions_BT,
        targets_BS=targets_BT,
        documents=find_documents(positions_BT, device=torch.device("cpu")),
    )
    plain.eval()  # some route at random in training
    nll_BT, entropy_BT = CausalLMWithEntropy(lm).eval()(inputs)
    documents = [each[None] for each in ids_BT[0].split(lengths)]
    logits_TV = torch.cat([plain(input_ids=ids, use_cache=False).logits[0] for ids in documents])
    expected_T = F.cross_entropy(logits_TV, targets_BT[0], reduction="none")
    torch.testing.assert_close(nll_BT[0], expected_T, rtol=1e-5, atol=1e-5)
    entropy_T = torch.distributions.Categorical(logits=logits_TV).entropy()
    torch.testing.assert_close(entropy_BT[0], entropy_T, rtol=1e-5, atol=1e-5)
    nll_BT.sum().backward()
    expected_T.sum().backward()
    found = dict(lm.named_parameters())
    grads = {name: w.grad for name, w in plain.named_parameters() if w.grad is not None}
    apart = {name: relative(found[name].grad, grad) for name, grad in grads.items()}

    def total() -> Any:
        logits_TV = torch.cat([plain(input_ids=x, use_cache=False).logits[0] for x in documents])
        return F.cross_entropy(logits_TV, targets_BT[0], reduction="sum")

    assert not beyond_rounding(apart, plain, total)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("inkling_text", FULL, "attention is given position_bias"),
    ("doge", {}, "attention is given attention_mask"),
    ("git", {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0},
     "this model does not pass keyword arguments on to its attention"),
    ("gpt_bigcode", {}, "in attention is not supported; set model.disable_dropout: true"),
    ("mllama", {}, "MllamaForCausalLM has no layers apart from its output layer"),
    ("phimoe", {}, "draws random numbers of its own in training, others on each layout; set "),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 has no effect"),
    ("qwen3", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
     "partial_rotary_factor 0.5 has no effect"),
    ("starcoder2", {"residual_dropout": 0.1}, "true, which makes residual_dropout 0"),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "keys", "told"), REFUSED)
def test_a_family_with_other_numbers_is_refused_in_a_sentence(model_type, keys, told):
    message = gate(model_type, **keys)
    assert message is not None
    assert message.startswith(f"model: {model_type} is not supported: ")
    assert told in message
    assert "\n" not in message


def test_a_folder_with_a_key_that_transformers_reads_nowhere_is_its_model_all_the_same():
    config = AutoConfig.for_model("llama", partial_rotary_factor=0.5)
    folder = Model(pretrained="/models/llama")
    assert find_other_numbers(folder, config, sequence_tokens=SEQUENCE_TOKENS) is None


def test_what_a_gate_draws_leaves_the_runs_own_draws_as_they_were():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert gate("llama") is None
    assert torch.equal(torch.rand(4), expected)


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512}
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {"model_type": "doge", **SMALL, "num_key_value_heads": 2},
            "model: doge is not supported: the model's attention is given attention_mask",
        ),
        (
            {"model_type": "gpt_bigcode", **SMALL, **NO_DROPOUT, "n_positions": 32},
            "its positions are learned and end at max_position_embeddings 32; data.sequence_tokens "
            "is 64, and can be up to 32",
        ),
    ],
)
def test_a_start_is_refused_before_a_model_or_a_run_folder_exists(
    small_corpus, tmp_path, config, told
):
    recipe = short_recipe(
        small_corpus, tmp_path / "run", model={"config": config}, train__sequence_parallel_size=1
    )
    messages = run_ranks(message_without_a_model, recipe, world_size=2)
    assert [told in message for message in messages] == [True, True]
    assert not (tmp_path / "run").exists()


def test_learned_positions_that_suffice_are_no_obstacle(small_corpus):
    config = {"model_type": "gpt_bigcode", **SMALL, **NO_DROPOUT, "n_positions": 64}
    check(small_corpus, model={"config": config}, train__sequence_parallel_size=1)


SOME = ("gemma4_text", "gpt2", "longcat_flash", "musicgen", "nemotron", "mamba2", "doge", "glm4")


@pytest.mark.parametrize("family", FAMILIES if WHOLE else SOME)
def test_every_family_of_transformers_is_right_or_refused_in_a_sentence(family):
    """By its own defaults, with which some cannot even be built; and docs/models.md says so."""
    message = refusal(family)
    if message is None:
        compare_losses_and_gradients(**config_of(family))
    else:
        assert message.startswith("model: ")
        assert "\n" not in message
    page = PAGE.read_text(encoding="utf-8")
    if family in SOME or f"with transformers {transformers.__version__}:" in page:
        assert (message is None) == (family in trained_families(page))


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own_llama"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.tanh()
        return output
"""


def test_code_that_comes_with_a_model_is_compared_too(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    config = {"model_type": "own_llama", **SMALL, "num_key_value_heads": 2, "auto_map": names}
    folder = tmp_path / "own_model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(CODE)
    model = Model(pretrained=str(folder), trust_remote_code=True)
    resolved = resolve_model_config(model, vocab_size=512, dtype=torch.float32)
    message = find_other_numbers(model, resolved, sequence_tokens=SEQUENCE_TOKENS)
    assert message is not None and "its losses here differ from those of" in message


def test_activation_checkpointing_that_a_model_cannot_do_is_found(monkeypatch):
    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    model = Model(config={"model_type": "llama"}, activation_checkpointing=True)
    config = AutoConfig.for_model("llama")
    message = find_other_numbers(model, config, sequence_tokens=SEQUENCE_TOKENS)
    assert message is not None and "does not support activation checkpointing" in message
