"""Complete one line with an exported model, using torch and transformers and nothing of ours."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def complete_line(folder: str, *, prompt: str, max_new_tokens: int, seed: int) -> str:
    """What the model adds to `prompt`, up to the end of the line."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    # Any: transformers' own types do not know that every such model generates
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    torch.manual_seed(seed)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    generated = model.generate(
        **ids,
        max_new_tokens=max_new_tokens,
        do_sample=True,
        temperature=0.5,
        top_k=20,
        pad_token_id=tokenizer.pad_token_id,
    )
    new_ids = generated[0, ids["input_ids"].shape[1] :]
    text = str(tokenizer.decode(new_ids, skip_special_tokens=True))
    return text.partition("\n")[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Complete one line with an exported model.",
        epilog='example: python launch/generate.py runs/quickstart/export --prompt "import"',
    )
    parser.add_argument("export", help="Hugging Face folder")
    parser.add_argument("--prompt", default="    def __init__(self,")
    parser.add_argument("--max-new-tokens", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1234)
    given = parser.parse_args()
    if not Path(given.export, "config.json").is_file():  # transformers would ask the hub for it
        print(
            f"error: {given.export}: no Hugging Face folder (it has no config.json); "
            "`python -m training export RUN` writes RUN/export",
            file=sys.stderr,
        )
        sys.exit(2)
    continuation = complete_line(
        given.export, prompt=given.prompt, max_new_tokens=given.max_new_tokens, seed=given.seed
    )
    print(f"prompt:       {given.prompt}")
    print(f"continuation: {continuation}")


if __name__ == "__main__":
    main()
