"""`generate`: what transformers itself writes with an export, and mistakes in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.__main__ import main


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
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], message: str, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(exported), *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert message in line
