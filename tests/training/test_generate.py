"""`generate`: what transformers itself writes with an export, and mistakes in a sentence."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.__main__ import main
from training.model.generation import ExportedModel, Sampling


def test_the_likeliest_continuation_is_that_of_transformers(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(exported), "--prompt", "import ", "--temperature", "0"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(exported)
    model = AutoModelForCausalLM.from_pretrained(exported)
    ids = tokenizer("import ", return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        for _ in range(40):
            likeliest = model(ids).logits[0, -1].argmax()
            if likeliest == model.generation_config.eos_token_id:
                break
            ids = torch.cat([ids, likeliest.view(1, 1)], dim=1)
    text = tokenizer.decode(ids[0], skip_special_tokens=True).removeprefix("import ")
    assert f"continuation: {text.partition(chr(10))[0]}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chat"], "its tokenizer has no chat template"),
        (["--system", "x"], "--system: goes with --chat"),
        (["--temperature", "-1"], "--temperature -1.0: expected 0 or more"),
        (["--temperature", "nan"], "--temperature nan: expected 0 or more"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0: expected 1 or more"),
        (["--max-new-tokens", "100000"], "the model was made for"),
        (["--temperature", "1e-45"], "--temperature 1e-45: expected 1e-06 or more, or 0"),
        (["--seed", str(2**64)], f"--seed {2**64}: expected a number of 64 bits"),
        (["--prompt", ""], "--prompt: it is empty"),
        (["--prompt", "caf\udce9"], "--prompt: it is not UTF-8"),
        (["--chat", "--system", "caf\udce9"], "--system: it is not UTF-8"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], message: str, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(exported), *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert message in line


@pytest.mark.parametrize("damage", ["are missing", "have another shape"])
def test_an_incomplete_export_is_refused(
    damage: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(exported, tmp_path / "export")
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    name = "model.norm.weight"
    if damage == "are missing":
        del weights[name]
    else:
        weights[name] = weights[name][:-1].clone()
    save_file(weights, file, metadata={"format": "pt"})
    assert main(["generate", str(folder)]) == 2
    assert f"{folder}: weights {damage}" in (said := capsys.readouterr().err) and name in said


def test_a_prompt_begins_as_documents_do_and_does_not_end(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "export")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    first, last = tokenizer.id_to_token(5), tokenizer.id_to_token(6)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, 5), (last, 6)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    model = ExportedModel.load(folder, Sampling(0.0, 1))
    plain = model.tokenizer("import os", add_special_tokens=False)["input_ids"]
    assert model.tokenizer("import os")["input_ids"] == [5, *plain, 6]
    assert model._encode_prompt("import os") == [5, *plain]


def test_a_chat_takes_what_the_context_leaves(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(exported, tmp_path / "export")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 64}))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    monkeypatch.setattr("sys.stdin", io.StringIO("import os\n"))
    assert main(["generate", str(folder), "--chat"]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("import os\n"))
    assert main(["generate", str(folder), "--chat", "--max-new-tokens", "64"]) == 2


def test_help_shows_the_spaces_of_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    assert "'    def __init__(self,'" in capsys.readouterr().out
