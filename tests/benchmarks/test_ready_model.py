"""A study's ready base: a package's GGUF becomes a folder that loads without gguf."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.study.ready_model import write_ready_model
from benchmarks.study.settings import ReadyModel

_HIDDEN, _MLP = 32, 64


def test_weights_and_tokenizer_load_from_the_folder(tmp_path, monkeypatch):
    package = "tiny_model_in_a_package"
    _write_package(tmp_path / package)
    monkeypatch.syspath_prepend(tmp_path)

    write_ready_model(ReadyModel("tiny", package, "tiny.gguf"), tmp_path / "export")

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    ids = tokenizer("a tale of two", add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == "a tale of two"
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    direct = AutoModelForCausalLM.from_pretrained(tmp_path / package, gguf_file="tiny.gguf")
    with torch.no_grad():
        logits = plain(torch.tensor([ids])).logits
        assert torch.equal(logits, direct(torch.tensor([ids])).logits)
    assert logits.std() > 0


def test_packages_that_are_missing_are_named(tmp_path):
    model = ReadyModel("tiny", "no_such_package", "tiny.gguf")
    with pytest.raises(ValueError, match=r"--no-deps no-such-package$"):
        write_ready_model(model, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def _write_package(folder: Path) -> None:
    import gguf
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    folder.mkdir()
    (folder / "__init__.py").touch()
    tokens = [*bytes_to_unicode().values(), "al", "<|end|>"]
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(_HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_MLP)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges(["a l"])
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)
    draws = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(tokens), _HIDDEN),
        "blk.0.attn_q": (_HIDDEN, _HIDDEN),
        "blk.0.attn_k": (_HIDDEN, _HIDDEN),
        "blk.0.attn_v": (_HIDDEN, _HIDDEN),
        "blk.0.attn_output": (_HIDDEN, _HIDDEN),
        "blk.0.ffn_gate": (_MLP, _HIDDEN),
        "blk.0.ffn_up": (_MLP, _HIDDEN),
        "blk.0.ffn_down": (_HIDDEN, _MLP),
        "blk.0.attn_norm": (_HIDDEN,),
        "blk.0.ffn_norm": (_HIDDEN,),
        "output_norm": (_HIDDEN,),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draws.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
