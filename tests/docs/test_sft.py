"""The page about conversations, as it stands: its model's name is a folder with a tiny one."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from tests.data_prep.chat_templates import CHATML
from tests.docs.markdown import REPO_ROOT, code_blocks
from tests.training.layouts import tiny_recipe
from tests.warm_python import warm_path, warm_python

PAGES = ("sft.md",)
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def write_model(folder: Path, tokenizer: Path) -> None:
    """Its tokenizer ends a text with a token that its template does not use."""
    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    size = backend.get_vocab_size() + -backend.get_vocab_size() % 64
    config = AutoConfig.for_model(**tiny_recipe().model.config | {"vocab_size": size})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHATML)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))


@pytest.mark.slow
def test_the_page_goes_from_a_file_of_chats_to_a_chat(small_corpus: Path, tmp_path: Path) -> None:
    for name in ("common", "data_prep", "training", "launch", "ds_configs"):
        (tmp_path / name).symlink_to(REPO_ROOT / name)
    write_model(tmp_path / NAME, small_corpus / "tokenizer")
    make, train, chat = code_blocks(REPO_ROOT / "docs" / "sft.md", "bash")
    train = train.replace("sft.yaml -n 1", "sft.yaml -n 1 train.max_steps=2")
    shown = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{make}\n{train}\necho ANSWER\n{chat}"],
        cwd=tmp_path,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHON": warm_python(), "PATH": warm_path()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "Complete: step 2 of 2" in shown.stdout + shown.stderr
    answer = shown.stdout.partition("ANSWER\n")[2].strip()
    assert answer and "<|im_end|>" not in answer
    export = tmp_path / "runs" / "chats" / "export"
    vocabulary = Tokenizer.from_file(str(export / "tokenizer.json")).get_vocab()
    ends = json.loads((export / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [vocabulary["<eos>"], vocabulary["<|im_end|>"]]
