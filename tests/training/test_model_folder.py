"""What a run keeps of its model is an export without weights: ends, files of its base, code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer

from data_prep.shards import Corpus
from tests.training.model_folders import SIZES, build_corpus, made, train_bpe, written
from tests.training.refusals import check, refused
from training.checkpoints.model_folder import SAMPLES, find_base, make_model_folder
from training.config.sections import Model


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_bpe(tmp_path_factory.mktemp("bpe") / "tokenizer")


def with_specials(bpe: Path, folder: Path, **tokens: str) -> Path:
    """A tokenizer in which every role has a token of its own."""
    shutil.copytree(bpe, folder)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens(list(tokens.values()))
    backend.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    named = {f"{role}_token": token for role, token in tokens.items()}
    path.write_text(json.dumps(json.loads(path.read_text()) | named))
    return folder


def special_ids_in(folder: Path, name: str) -> dict[str, Any]:
    content = json.loads((folder / name).read_text())
    return {role: content.get(f"{role}_token_id") for role in ("bos", "eos", "pad")}


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_special_ids_are_the_tokenizers_not_the_defaults_of_a_class(bpe, tmp_path, name):
    """Llama's are 1 and 2, which here are letters."""
    tokenizer = with_specials(bpe, tmp_path / "t", bos="<s>", eos="</s>", pad="<pad>")
    corpus = build_corpus(tmp_path, tokenizer)
    folder = made(corpus, tmp_path / "model", model_type="llama")
    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    expected = {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}
    found = special_ids_in(folder, name)
    assert found == {role: backend.token_to_id(token) for role, token in expected.items()}


def write_base(folder: Path, tokenizer: Path, **config: Any) -> Path:
    """A pretrained folder without weights."""
    shutil.copytree(tokenizer, folder)
    keys = {"vocab_size": 640, **SIZES, "model_type": "qwen3", **config}
    AutoConfig.for_model(**keys).save_pretrained(folder)
    return folder


SAMPLING = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}


def test_what_came_with_the_base_is_kept(bpe, tmp_path):
    tokenizer = with_specials(bpe, tmp_path / "t", eos="<|im_end|>", pad="<|endoftext|>")
    base = write_base(tmp_path / "base", tokenizer)
    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    end, pad = (backend.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>"))
    letter = backend.token_to_id("a")
    ends = {"eos_token_id": [pad, end, letter], "bos_token_id": pad}
    (base / "generation_config.json").write_text(json.dumps(SAMPLING | ends))
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}")
    corpus = build_corpus(tmp_path, tokenizer)
    folder = made(corpus, tmp_path / "model", pretrained=base)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert {key: generation[key] for key in SAMPLING} == SAMPLING
    assert special_ids_in(folder, "generation_config.json") == {
        "bos": pad,
        "eos": [end, pad],
        "pad": pad,
    }
    templates = AutoTokenizer.from_pretrained(folder).chat_template
    assert templates == {"default": "{{ messages }}", "tool": "{{ tools }}"}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (base / name).read_bytes()


def test_an_invalid_generation_config_of_the_base_is_told_and_kept(bpe, tmp_path, capsys):
    base = write_base(tmp_path / "base", bpe)
    (base / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6}')
    folder = made(build_corpus(tmp_path, bpe), tmp_path / "model", pretrained=base)
    told = capsys.readouterr().err
    assert "WARNING: generation_config.json" in told and "temperature" in told
    assert json.loads((folder / "generation_config.json").read_text())["temperature"] == 0.6


def test_older_readers_find_their_names(bpe, tmp_path):
    """transformers 4 knows no rope_parameters, and would take another base without a word."""
    corpus = build_corpus(tmp_path, bpe)
    rope = {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}
    folder = made(corpus, tmp_path / "model", model_type="llama", rope_parameters=rope)
    content = json.loads((folder / "config.json").read_text())
    assert content["rope_theta"] == 5e5
    assert content["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert AutoConfig.from_pretrained(folder).rope_parameters == rope


@pytest.mark.parametrize("rope", [{}, {"partial_rotary_factor": 0.5}])
def test_a_class_that_keeps_older_names_beside_the_newer_can_be_exported(bpe, tmp_path, rope):
    corpus = build_corpus(tmp_path, bpe)
    rope = {"rope_type": "default", "rope_theta": 5e5, **rope}
    folder = made(
        corpus, tmp_path / "model", model_type="phi3", rope_parameters=rope, pad_token_id=0
    )
    kept = AutoConfig.from_pretrained(folder).rope_parameters
    assert kept == {"partial_rotary_factor": 1.0} | rope


def test_a_base_that_is_gone_is_named(tmp_path):
    gone = str(tmp_path / "gone")
    message = refused(lambda: find_base(Model(pretrained=gone)))
    assert message.startswith(f"model.pretrained {gone}: not there: ")
    assert "\n" not in message


def test_templates_of_a_tokenizer_come_with_its_corpus(bpe, tmp_path):
    tokenizer = Path(shutil.copytree(bpe, tmp_path / "t"))
    (tokenizer / "chat_template.jinja").write_text("{{ messages }}")
    (tokenizer / "additional_chat_templates").mkdir()
    (tokenizer / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    corpus = build_corpus(tmp_path, tokenizer)
    names = [file.name for file in corpus.manifest.tokenizer.files]
    assert "additional_chat_templates/rag.jinja" in names
    folder = made(corpus, tmp_path / "model", model_type="qwen3")
    assert set(AutoTokenizer.from_pretrained(folder).chat_template) == {"default", "rag"}


@pytest.mark.parametrize("flags", [{"do_sample": False, "temperature": 0.6}, {"top_k": None}])
def test_sampling_that_transformers_would_not_save_is_kept_as_it_was(bpe, tmp_path, flags):
    base = write_base(tmp_path / "base", bpe)
    (base / "generation_config.json").write_text(json.dumps(flags))
    corpus = build_corpus(tmp_path, bpe)
    folder = made(corpus, tmp_path / "model", pretrained=base)
    kept = json.loads((folder / "generation_config.json").read_text())
    assert {key: kept.get(key) for key in flags} == flags


def test_another_end_than_that_of_the_documents_is_refused(bpe, tmp_path):
    """Training would teach one end, and generation wait for the other."""
    tokenizer = with_specials(bpe, tmp_path / "t", eos="<|im_end|>")
    corpus = build_corpus(tmp_path, tokenizer)
    path = corpus.tokenizer_dir / "tokenizer_config.json"
    path.write_text(path.read_text().replace("<|im_end|>", "<eos>"))
    message = refused(lambda: made(corpus, tmp_path / "model", model_type="llama"))
    assert "its eos has the id 0; in the corpus it is '<|im_end|>', 600" in message
    assert "\n" not in message


def test_a_start_whose_export_would_never_end_is_refused(corpus_copy):
    """And so before weights exist."""
    check(corpus_copy)
    path = corpus_copy / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "!"}))
    message = refused(lambda: check(corpus_copy))
    assert "so an exported model would not work: its eos has the id " in message


CODE = {
    "configuration_ours.py": """
from transformers import PretrainedConfig
class OursConfig(PretrainedConfig):
    model_type = "ours"
    def __init__(self, vocab_size=640, hidden_size=16, num_hidden_layers=1, **rest):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_hidden_layers = num_hidden_layers
        super().__init__(**rest)
""",
    "modeling_ours.py": """
import torch
from torch import nn
from transformers import PreTrainedModel
from .configuration_ours import OursConfig
from .parts import Part
class OursForCausalLM(PreTrainedModel):
    config_class = OursConfig
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.part = Part(config.hidden_size)
        self.post_init()
""",
    "parts.py": "from torch import nn\nclass Part(nn.Linear):\n"
    "    def __init__(self, size):\n        super().__init__(size, size)\n",
}


def write_base_with_code(folder: Path, tokenizer: Path) -> Path:
    write_base(folder, tokenizer)
    for name, code in CODE.items():
        (folder / name).write_text(code)
    auto_map = {
        "AutoConfig": "configuration_ours.OursConfig",
        "AutoModelForCausalLM": "modeling_ours.OursForCausalLM",
    }
    config = {"model_type": "ours", "auto_map": auto_map, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def made_with_code(base: Path, corpus: Corpus, folder: Path) -> Path:
    model = Model(pretrained=str(base), trust_remote_code=True)
    config = AutoConfig.from_pretrained(base, trust_remote_code=True)
    return written(make_model_folder(model, config, corpus, base=base), folder)


def test_code_of_a_model_is_kept_with_it(bpe, tmp_path, imported_code):
    from transformers import AutoModelForCausalLM

    base = write_base_with_code(tmp_path / "base", bpe)
    corpus = build_corpus(tmp_path, bpe)
    folder = made_with_code(base, corpus, tmp_path / "model")
    for name in CODE:
        assert (folder / name).read_bytes() == (base / name).read_bytes()
    shutil.rmtree(base)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    built = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    assert {name for name, _ in built.named_parameters()} == {
        "embed.weight",
        "part.weight",
        "part.bias",
    }


def test_code_that_is_not_all_there_is_refused_before_training(bpe, tmp_path, imported_code):
    base = write_base_with_code(tmp_path / "base", bpe)
    corpus = build_corpus(tmp_path, bpe)
    (base / "parts.py").unlink()
    message = refused(lambda: made_with_code(base, corpus, tmp_path / "model"))
    assert "could not be exported" in message
    assert "\n" not in message


def test_samples_of_the_corpus_are_no_part_of_the_other_files(bpe, tmp_path):
    corpus = build_corpus(tmp_path, bpe)
    folder = made(corpus, tmp_path / "model", model_type="qwen3")
    samples = json.loads((folder / SAMPLES).read_text())
    assert all(len(ids) <= 48 for ids in samples["documents"])
    assert (folder / SAMPLES).stat().st_size < 100_000
