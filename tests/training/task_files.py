"""Tasks of lm-evaluation-harness, written by tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

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
