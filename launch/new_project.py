"""The files of a new project: a recipe, how to make its corpus, how to launch it."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from pathlib import Path

import yaml

from training.config.load import parse_recipe

_RECIPE = """\
# {name}: {model}, adapted to the texts in texts/. Only what differs from the defaults is stated;
# every key is explained by docs/recipes.md. Its baseline: regulariser=none run_dir=runs/plain
run_dir: runs/{name}

model:
  pretrained: {model_yaml}
  activation_checkpointing: true

data:
  corpus: data/{name} # written by prepare.sh
  sequence_tokens: {sequence_tokens}

train:
  epochs: 8 # at most: stop_when ends the run before repetition hurts
  global_batch_tokens: {batch_tokens} # little, for many steps; divides among 1, 2, 4 or 8 GPUs
  stop_when: {{worse_for: 10}} # evaluations without a new best; saves each

ema:
  half_life_epochs: 1.0 # an average of the weights; export --weights ema

teacher: # learn half of each loss from this average, docs/evidence.md
  kind: ema # takes a third more work; teacher=null leaves it out
  weight: 0.5

evaluation:
  every_steps: 10 # of a few hundred
"""
_PREPARE = """\
#!/usr/bin/env bash
# Turn texts/ into the corpus of recipe.yaml: token ids, and samples of {sequence_tokens} tokens.
set -euo pipefail
cd -- "$(dirname -- "${{BASH_SOURCE[0]}}")"

entrodrop prep build --input texts --tokenizer {model_shell} --val-frac 0.1 --out data/{name}
entrodrop prep pack data/{name} --seq-len {sequence_tokens}
entrodrop prep verify data/{name}
"""
_README = """\
# {name}

Put texts, JSONL, Parquet or source code into `texts/`, then, in this folder:

```
bash prepare.sh                                   # texts/ to data/{name}
entrodrop prep inspect data/{name} --seq-len {sequence_tokens} --sample 0
entrodrop plan recipe.yaml --gpus 8 --gpu-gib 80  # memory and time, before a GPU is taken
entrodrop launch local recipe.yaml                # this machine
entrodrop launch slurm recipe.yaml --nodes=1 --ntasks-per-node=8 --gpus-per-node=8
entrodrop launch deepspeed recipe.yaml --hostfile hosts.txt
entrodrop launch mpirun recipe.yaml --hostfile hosts.txt
entrodrop watch runs/{name}                       # the report of the run, as it goes
entrodrop export runs/{name} --checkpoint best    # a Hugging Face folder
```

The same command again resumes. Any key of the recipe can be changed behind it: `train.epochs=3`.
"""
_BATCH_TOKENS = 16_384
"""At least: a corpus of 500,000 tokens then has 30 steps an epoch."""
_BATCH_SHARERS = 8
"""A multiple of as many samples, for the GPUs of a node."""


def write_project(folder: Path, *, model: str, sequence_tokens: int) -> list[Path]:
    """Create `folder`, whole or not at all.

    Returns:
        What is in it.

    Raises:
        ValueError: for a folder that exists, or values that no recipe may have.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists already; choose another NAME")
    if sequence_tokens < 1:
        raise ValueError(f"--sequence-tokens {sequence_tokens} is not above 0")
    shared_tokens = _BATCH_SHARERS * sequence_tokens
    words = {
        "name": folder.name,
        "model": model,
        "model_yaml": yaml.safe_dump(model, default_style='"').strip(),
        "model_shell": shlex.quote(model),
        "sequence_tokens": sequence_tokens,
        "batch_tokens": -(-_BATCH_TOKENS // shared_tokens) * shared_tokens,
    }
    if shlex.quote(folder.name) != folder.name:
        raise ValueError(
            f"NAME {folder.name!r}: use letters, digits and . _ - only; it becomes part of commands"
        )
    if Path(model).is_dir():  # the commands run in the project's folder
        words["model_yaml"] = yaml.safe_dump(str(Path(model).resolve()), default_style='"').strip()
        words["model_shell"] = shlex.quote(str(Path(model).resolve()))
    recipe = _RECIPE.format(**words)
    parse_recipe(yaml.safe_load(recipe), origin=f"{folder}/recipe.yaml")
    files = {"recipe.yaml": recipe, "prepare.sh": _PREPARE.format(**words)}
    files["README.md"] = _README.format(**words)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        staged.chmod(0o755)
        for name, content in files.items():
            (staged / name).write_text(content, encoding="utf-8")
        (staged / "texts").mkdir()
        staged.rename(folder)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return [folder / name for name in (*files, "texts")]
