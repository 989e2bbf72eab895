"""The verb `generate`: complete a line, or chat, with an exported model, by plain transformers."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from common.commands import command
from common.hints import no_folder

SUMMARY = "complete a line, or chat, with an exported model"
_PROMPT = "    def __init__(self,"
DESCRIPTION = f"""\
Load an export as any other program would, and let it write: the continuation of --prompt up to the
end of its line, or with --chat an answer to each line of input, by the chat template of its
tokenizer. An empty line or Ctrl-D ends the chat. Without both, the prompt is
{_PROMPT!r}.

  python -m training generate runs/quickstart/export --prompt "import"
  python -m training generate runs/chat/export --chat
  echo "What is entropy?" | python -m training generate runs/chat/export --chat --temperature 0
"""
_LEAST_TEMPERATURE = 1e-6
"""Below, scores divided by it may be infinite, and no token can be drawn."""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "export", type=Path, metavar="EXPORT", help="Hugging Face folder, also of an adapter"
    )
    what = verb.add_mutually_exclusive_group()
    # its default is above: the help of an option loses spaces
    what.add_argument("--prompt", metavar="TEXT", default=_PROMPT, help="a text to be continued")
    what.add_argument("--chat", action="store_true", help="answer each line of input")
    verb.add_argument("--system", metavar="TEXT", help="with --chat: the system's message")
    verb.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="default: 40; with --chat 512, or what the context leaves",
    )
    verb.add_argument(
        "--temperature", type=float, default=0.5, help="0: the likeliest token (default: 0.5)"
    )
    verb.add_argument("--seed", type=int, default=1234, help="default: %(default)s")


def run(options: argparse.Namespace) -> int:
    _check(options)
    import torch

    from training.model.generation import ExportedModel, Sampling

    num_new = options.max_new_tokens or (512 if options.chat else 40)
    may_be_fewer = options.max_new_tokens is None
    sampling = Sampling(options.temperature, num_new, may_be_fewer=may_be_fewer)
    model = ExportedModel.load(options.export, sampling)
    torch.manual_seed(options.seed)
    if options.chat:
        model.chat(_lines(), system=options.system)
        return 0
    continuation = model.complete(options.prompt)
    print(f"prompt:       {options.prompt}")
    print(f"continuation: {continuation}")
    return 0


def _check(options: argparse.Namespace) -> None:
    """What can be said before anything is loaded; transformers would ask the hub for a folder."""
    if not options.export.is_dir():
        raise ValueError(no_folder(options.export))
    names = ("config.json", "adapter_config.json")
    if not any((options.export / name).is_file() for name in names):
        raise ValueError(
            f"{options.export}: no Hugging Face folder (it has no config.json); "
            f"`{command('training export RUN')}` writes RUN/export"
        )
    if not 0 <= options.temperature < math.inf:
        raise ValueError(f"--temperature {options.temperature}: expected 0 or more")
    if 0 < options.temperature < _LEAST_TEMPERATURE:
        raise ValueError(
            f"--temperature {options.temperature}: expected {_LEAST_TEMPERATURE} or more, or 0 for "
            "the likeliest token"
        )
    if not -(2**63) <= options.seed < 2**64:
        raise ValueError(f"--seed {options.seed}: expected a number of 64 bits")
    if options.max_new_tokens is not None and options.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {options.max_new_tokens}: expected 1 or more")
    if options.system and not options.chat:
        raise ValueError("--system: goes with --chat")
    if not options.prompt:
        raise ValueError("--prompt: it is empty")
    for name in ("prompt", "system"):
        _refuse_surrogates(getattr(options, name) or "", name=f"--{name}")


def _refuse_surrogates(text: str, *, name: str) -> None:
    """Bytes that are not UTF-8 arrive as such; no tokenizer accepts them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}: it is not UTF-8") from None


def _lines() -> Iterator[str]:
    """The user's, up to an empty one; asked for where somebody sits."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not line:
            return
        _refuse_surrogates(line, name="a line of input")
        yield line
