"""The page about conversations, as it stands, on a tiny model and on the one that it names.

`make test-all` has the pretrained one, from the package of the study's ready base; `make test` a
tiny one of its shape, with its chat template.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.study.ready_model import write_ready_model
from benchmarks.study.settings import READY
from tests.data_prep.chat_templates import SMOLLM
from tests.docs.markdown import REPO_ROOT, code_blocks
from tests.grids import WHOLE
from tests.warm_python import warm_path, warm_python

PAGES = ("sft.md",)
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGES = REPO_ROOT / ".venv" / "gguf"
TINY, PRETRAINED = "tiny", "pretrained"
SHAPE = {
    "model_type": "llama",
    "hidden_size": 36,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def write_tiny(folder: Path, tokenizer: Path) -> None:
    """Its tokenizer ends a text with a token that its template does not use, as many bases do."""
    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    size = backend.get_vocab_size() + -backend.get_vocab_size() % 64
    config = AutoConfig.for_model(**SHAPE, vocab_size=size)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(SMOLLM)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))


@pytest.mark.slow
@pytest.mark.parametrize("which", [TINY, *([PRETRAINED] if WHOLE else [])])
def test_the_page_goes_from_a_file_of_chats_to_a_chat(
    which: str, small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("common", "data_prep", "training", "launch", "ds_configs"):
        (tmp_path / name).symlink_to(REPO_ROOT / name)
    model = tmp_path / NAME
    model.parent.mkdir()
    if which == TINY:
        write_tiny(model, small_corpus / "tokenizer")
    else:
        monkeypatch.setattr(sys, "path", [*sys.path, str(PACKAGES)])
        write_ready_model(READY.sizes[0], model)
        assert (model / "chat_template.jinja").read_text() == SMOLLM
    make, train, chat = code_blocks(REPO_ROOT / "docs" / "sft.md", "bash")
    train = train.replace("sft.yaml -n 1", "sft.yaml -n 1 train.max_steps=3")
    if which == TINY:  # which hardly ever ends an answer by itself
        chat = chat.replace("--chat", "--chat --max-new-tokens 16")
    shown = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{make}\n{train}\necho ANSWER\n{chat}"],
        cwd=tmp_path,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHON": warm_python(), "PATH": warm_path()},
        capture_output=True,
        text=True,
        timeout=300 if which == TINY else 1800,
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "Complete: step 3 of 3" in shown.stdout + shown.stderr
    answer = shown.stdout.partition("ANSWER\n")[2].strip()
    assert answer and "<|im_end|>" not in answer
    run_dir = tmp_path / "runs" / "chats"
    vocabulary = Tokenizer.from_file(str(run_dir / "export" / "tokenizer.json")).get_vocab()
    ends = json.loads((run_dir / "export" / "generation_config.json").read_text())["eos_token_id"]
    end_of_turn = vocabulary["<|im_end|>"]
    assert ends == ([vocabulary["<eos>"], end_of_turn] if which == TINY else end_of_turn)
    if which == PRETRAINED:
        rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
        first, *_, last = (row["loss"] for row in rows if row["kind"] == "evaluation")
        assert last < first - 0.3
