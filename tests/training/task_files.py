"""Tasks of lm-evaluation-harness, written by tests, and the command that asks them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.warm_python import warm_python

ROOT = Path(__file__).parents[2]

PROMPTS = ["def load(self,", "return cls(", "import os\nclass", "if not self.", "for key in"]


CHOICES = [" name", " value):", "\n    raise KeyError"]


def write_task(
    folder: Path, name: str, documents: list[dict[str, Any]], *, metrics: list[str], **keys: Any
) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    lower_is_better = ("perplexity", "bits_per_byte")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{text}}",
        "target_delimiter": "",
        "metric_list": [
            {"metric": metric, "aggregation": metric, "higher_is_better": False}
            if metric in lower_is_better
            else {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in metrics
        ],
        "metadata": {"version": 3.0},
        **keys,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


def write_choice_task(folder: Path) -> None:
    """`our_choice`: five documents with three answers each."""
    write_task(
        folder,
        "our_choice",
        [{"text": text, "answer": i % 3} for i, text in enumerate(PROMPTS)],
        output_type="multiple_choice",
        doc_to_choice=CHOICES,
        doc_to_target="{{answer}}",
        metrics=["acc", "acc_norm"],
    )


def write_pages_task(folder: Path) -> None:
    """`our_pages`: bits per byte of five texts."""
    write_task(
        folder,
        "our_pages",
        [{"text": "", "page": text * 3} for text in PROMPTS],
        output_type="loglikelihood_rolling",
        doc_to_target="{{page}}",
        metrics=["bits_per_byte"],
    )


def evaluate(*arguments: str, home: Path, num_ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """`python -m training evaluate`, as a user without internet runs it."""
    launcher = [warm_python()]
    if num_ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(home / "hf_home"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
    return subprocess.run(
        [*launcher, "-m", "training", "evaluate", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
