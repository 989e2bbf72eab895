"""The verb `score`: computes the entropies of a corpus's tokens with a frozen model."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

SUMMARY = "compute the entropies of all tokens with a frozen model"
DESCRIPTION = """\
Run a model over every sample of a pack and store the entropy (or the cross-entropy) of each token
in DIR/scores-NAME. Training reads it with entropy.source: reference, so that EntroDrop needs no
extra forward pass; inspect colours tokens by it. With --top-k, the most likely tokens of each
position are kept beside it, with their log-probabilities: a teacher without weights, which
training reads with teacher.kind: scores.

Under torchrun or deepspeed every process runs this command, with ZeRO-3 and sequence parallelism as
in training; the scores do not depend on the number of processes. If killed, run it again to resume.

  python -m data_prep score data/notes --model Qwen/Qwen3-0.6B --seq-len 2048
  torchrun --nproc-per-node=8 -m data_prep score data/notes --model ./Qwen3-8B --seq-len 8192 \\
      --sequence-parallel-size 4
  python -m data_prep score data/notes --model ./Qwen3-8B --seq-len 2048 --name 8b --top-k 32
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="DIR", help="corpus folder written by build")
    verb.add_argument("--model", required=True, help="hub name or folder of a causal LM")
    verb.add_argument(
        "--seq-len",
        type=int,
        required=True,
        metavar="S",
        help="context length: use the pack for S tokens",
    )
    verb.add_argument("--name", default="reference", help="name of the scores (default: reference)")
    verb.add_argument(
        "--measure",
        choices=["shannon", "nll"],
        default="shannon",
        help="entropy of the prediction (default), or the token's own cross-entropy",
    )
    verb.add_argument(
        "--top-k",
        type=int,
        metavar="K",
        help="also keep the K most likely tokens of each position (4 bytes each; 6 for "
        "vocabularies of more than 65,536)",
    )
    verb.add_argument(
        "--micro-batch-samples",
        type=int,
        default=1,
        metavar="B",
        help="samples per forward pass (default: 1)",
    )
    verb.add_argument(
        "--sequence-parallel-size", type=int, default=1, metavar="P", help="default: 1"
    )
    verb.add_argument(
        "--deepspeed",
        default="ds_configs/zero3.json",
        metavar="JSON",
        help="DeepSpeed config, as in a recipe",
    )
    verb.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with the model"
    )
    verb.add_argument(
        "--overwrite", action="store_true", help="replace existing scores of that name"
    )


def run(options: argparse.Namespace) -> int:
    try:
        from training.run.score import ScoreOptions, score_corpus
    except ModuleNotFoundError as missing:
        raise ValueError(
            f"score runs a model, but {missing.name} is not installed: this installation is for "
            "data preparation only. Run it where requirements.txt is installed, or in the training "
            "image"
        ) from None

    folder = score_corpus(
        ScoreOptions(
            corpus=options.folder,
            model=options.model,
            sequence_tokens=options.seq_len,
            name=options.name,
            measure=options.measure,
            top_k=options.top_k,
            micro_batch_samples=options.micro_batch_samples,
            sequence_parallel_size=options.sequence_parallel_size,
            deepspeed=options.deepspeed,
            trust_remote_code=options.trust_remote_code,
            overwrite=options.overwrite,
        )
    )
    if os.environ.get("RANK", "0") == "0":
        print(f"scores     {folder}")
    return 0
