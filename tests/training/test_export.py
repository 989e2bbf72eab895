"""An export is the run's model in plain transformers (losses, tokens, ends), or nothing."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils import safe_get_full_grad
from transformers import AutoConfig, AutoModelForCausalLM

from data_prep.packing.pack import pack
from data_prep.shards import open_corpus
from tests.distributed import run_ranks
from tests.training.layouts import tiny_recipe
from tests.training.model_folders import (
    assert_it_gives_the_ids_of_the_corpus,
    build_corpus,
)
from tests.training.refusals import refused
from tests.training.short_runs import SEQUENCE_TOKENS, short_recipe, train_on_rank
from training.checkpoints.export import Form, export_run
from training.checkpoints.model_folder import MODEL_FOLDER, SAMPLES
from training.data.documents import find_documents
from training.model.engine import build_engine
from training.model.inputs import NO_REGULARISATION, ModelInputs
from training.model.plain_losses import find_other_losses
from training.ranks.dist import init_layout

MODEL = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unigram")
    made = build_corpus(folder, "unigram")
    pack(made.folder, seq_len=SEQUENCE_TOKENS)
    return made.folder


@pytest.fixture(scope="module")
def run_dir(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of a llama from scratch, on a corpus that is gone afterwards."""
    folder, own = tmp_path_factory.mktemp("runs") / "run", corpus.parent / "moved"
    shutil.copytree(corpus, own)
    changes: dict[str, Any] = {
        "model": {"config": MODEL},
        "train__max_steps": 2,
        "train__sequence_parallel_size": 1,
        "evaluation": {"every_steps": None},
        "deepspeed": "ds_configs/zero3.json",
    }
    run_ranks(train_on_rank, short_recipe(own, folder, **changes), world_size=1)
    shutil.rmtree(own)
    return folder


@pytest.fixture(scope="module")
def exported(run_dir: Path) -> Path:
    return export_run(run_dir)


def test_an_export_needs_no_corpus_and_has_its_ids(exported, corpus):
    assert_it_gives_the_ids_of_the_corpus(exported, open_corpus(corpus))
    assert not (exported / SAMPLES).exists()
    assert not list(exported.parent.glob(".staging-*"))


def test_generation_ends_at_the_end_of_the_corpuss_documents(exported, corpus):
    eos = open_corpus(corpus).manifest.special_ids.eos
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)

    def end_after_five(ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        forced[:, eos if ids.shape[1] == 5 else 2] = 0
        return forced

    prompt = torch.tensor([[7, 8]])
    generated = model.generate(prompt, max_new_tokens=20, logits_processor=[end_after_five])
    assert generated[0].tolist() == [7, 8, 2, 2, 2, eos]


def test_weights_are_written_in_the_dtype_that_is_asked_for(exported, run_dir, tmp_path):
    """fp32 are the masters, of which the training has rounded ones."""
    folder = export_run(run_dir, form=Form(dtype="float32"), out=tmp_path / "export")
    rounded, asked = (
        AutoModelForCausalLM.from_pretrained(each, dtype="auto") for each in (exported, folder)
    )
    assert (rounded.dtype, asked.dtype) == (torch.bfloat16, torch.float32)
    expected = rounded.state_dict()
    for name, weight in asked.state_dict().items():
        assert torch.equal(weight.to(torch.bfloat16), expected[name])
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "float32"


ROUTED: dict[str, Any] = {
    **{key: value for key, value in MODEL.items() if key != "model_type"},
    "head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}


def test_a_router_that_transformers_keeps_in_fp32_is_exported_from_bf16(corpus, tmp_path):
    vocab_size = open_corpus(corpus).vocab_size
    lm = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("glm4_moe", vocab_size=vocab_size, **ROUTED)
    )
    gate = "model.layers.1.mlp.gate"
    bias_E = lm.get_buffer(f"{gate}.e_score_correction_bias")
    bias_E.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))  # none of them is a number of bf16
    lm.save_pretrained(tmp_path / "base")
    changes: dict[str, Any] = {
        "model": {"pretrained": str(tmp_path / "base")},
        "deepspeed": "ds_configs/zero3.json",
        "train__max_steps": 1,
        "train__sequence_parallel_size": 1,
        "evaluation": {"every_steps": None},
    }
    run_dir = tmp_path / "run"
    run_ranks(train_on_rank, short_recipe(corpus, run_dir, **changes), world_size=1)
    again = AutoModelForCausalLM.from_pretrained(export_run(run_dir), dtype="auto")
    assert torch.equal(again.get_buffer(f"{gate}.e_score_correction_bias"), bias_E)
    router, embedding = again.get_parameter(f"{gate}.weight"), again.get_input_embeddings().weight
    assert (router.dtype, embedding.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(router, router.bfloat16().float())  # as the training has rounded it


def test_a_run_that_kept_less_is_exported_with_the_corpus(run_dir, corpus, tmp_path, exported):
    old = tmp_path / "old"
    shutil.copytree(run_dir, old)
    recipe = old / "recipe.resolved.yaml"
    recipe.write_text(recipe.read_text().replace(str(corpus.parent / "moved"), str(corpus)))
    for path in (old / MODEL_FOLDER).iterdir():
        if path.name != "config.json":
            path.unlink()
    again = export_run(old)
    for path in exported.iterdir():
        # the card now tells of the corpus, too
        if path.name not in ("complete.json", "README.md"):
            assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_tokenizer_that_changed_since_the_start_is_not_exported(run_dir, tmp_path):
    changed = tmp_path / "run"
    shutil.copytree(run_dir, changed)
    path = changed / MODEL_FOLDER / SAMPLES
    samples = json.loads(path.read_text())
    samples["tokens"]["texts"][-1][1][0] += 1
    path.write_text(json.dumps(samples))
    message = refused(lambda: export_run(changed, out=tmp_path / "export"))
    assert "the tokenizer is not the corpus's: " in message
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_configuration_that_gives_other_losses_is_not_exported(run_dir, tmp_path, monkeypatch):
    """Here embeddings are scaled in a way that only plain transformers sees."""
    from transformers.models.llama.modeling_llama import LlamaModel

    whole = LlamaModel.forward

    def scaled(self, input_ids=None, inputs_embeds=None, **rest):
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids) * 2
        return whole(self, inputs_embeds=inputs_embeds, **rest)

    monkeypatch.setattr(LlamaModel, "forward", scaled)
    message = refused(lambda: export_run(run_dir, out=tmp_path / "export"))
    assert "plain transformers has other losses than the training" in message
    assert not list(tmp_path.iterdir())


CODE = {
    "configuration_of_ours.py": """
from transformers import LlamaConfig
class OfOursConfig(LlamaConfig):
    model_type = "of_ours"
""",
    "modeling_of_ours.py": """
from transformers import LlamaForCausalLM
from .configuration_of_ours import OfOursConfig
class OfOursForCausalLM(LlamaForCausalLM):
    config_class = OfOursConfig
""",
}


def write_base_with_code(folder: Path, *, vocab_size: int) -> Path:
    config = AutoConfig.for_model(**MODEL, vocab_size=vocab_size)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    path = folder / "config.json"
    auto_map = {
        "AutoConfig": "configuration_of_ours.OfOursConfig",
        "AutoModelForCausalLM": "modeling_of_ours.OfOursForCausalLM",
    }
    content = json.loads(path.read_text()) | {"model_type": "of_ours", "auto_map": auto_map}
    path.write_text(json.dumps(content))
    for name, code in CODE.items():
        (folder / name).write_text(code)
    return folder


def test_a_model_with_code_of_its_own_is_exported_without_its_base(corpus, tmp_path, imported_code):
    vocab_size = open_corpus(corpus).vocab_size
    base = write_base_with_code(tmp_path / "base", vocab_size=vocab_size)
    changes: dict[str, Any] = {
        "model": {"pretrained": str(base), "trust_remote_code": True},
        "train__max_steps": 1,
        "train__sequence_parallel_size": 1,
        "evaluation": {"every_steps": None},
    }
    run_dir = tmp_path / "run"
    run_ranks(train_on_rank, short_recipe(corpus, run_dir, **changes), world_size=1)
    shutil.rmtree(base)
    folder = export_run(run_dir)
    for name, code in CODE.items():
        assert (folder / name).read_text() == code
    again = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(again).__name__ == "OfOursForCausalLM"


def gradient_of_the_padding_row(folder: str) -> tuple[int, float]:
    recipe = tiny_recipe(model={"pretrained": folder})
    config = AutoConfig.from_pretrained(folder, dtype=torch.float32)
    layout = init_layout(sp_size=1)
    engine = build_engine(
        recipe, config, layout=layout, num_micro_steps=1, regularisation=NO_REGULARISATION
    )
    pad = config.pad_token_id
    ids = torch.tensor([[5, pad, 6, pad, 7, 8]])
    positions = torch.arange(6)[None]
    documents = find_documents(positions, device=layout.device)
    scored = engine.score(ModelInputs(ids, positions, ids.roll(-1, 1), documents))
    engine.ds.backward(scored.nll_BS.sum())
    weight = engine.model.lm.get_input_embeddings().weight
    return pad, float(safe_get_full_grad(weight)[pad].abs().sum())


def test_a_token_that_is_padding_too_is_trained_like_any_other(run_dir, tmp_path):
    """Generation pads with the end where a tokenizer has nothing else; training does not pad."""
    folder = Path(shutil.copytree(export_run(run_dir, out=tmp_path / "e"), tmp_path / "base"))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token_id": 1}))
    ((pad, gradient),) = run_ranks(gradient_of_the_padding_row, str(folder), world_size=1)
    assert pad == 1
    assert gradient > 0


@pytest.fixture
def no_room() -> Iterator[None]:
    """As a quota that is reached: no file may be longer than 20 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_is_full_is_one_sentence_and_leaves_nothing(run_dir, tmp_path, no_room):
    message = refused(lambda: export_run(run_dir, out=tmp_path / "export"))
    assert "File too large" in message
    assert "nothing was exported" in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "mixtral", "olmo2"])
def test_our_forward_pass_has_the_losses_of_plain_transformers(model_type):
    config = AutoConfig.for_model(vocab_size=64, **(MODEL | {"model_type": model_type}))
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    documents = torch.randint(0, 64, (5, 40)).tolist()
    assert find_other_losses(lm, [documents[0][:1], *documents]) is None
