"""Tasks of lm-evaluation-harness that lie beside the corpora, asked without the internet.

    python -m training evaluate FOLDER --tasks study_words --tasks-dir OUT/corpora/tasks --out FILE

asks the same of any model.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from benchmarks.study.corpora import Folders, heldout_texts
from benchmarks.study.questions import Question, line_questions, word_questions
from benchmarks.study.results import Row
from benchmarks.study.settings import Setting
from benchmarks.study.texts import spare_texts

_AT_ONCE = 16
_METRIC = {"words": "acc", "lines": "acc_norm"}
"""Of the harness: lines differ in length, so their likelihoods are taken by the byte."""


def prepare_tasks(setting: Setting, folders: Folders) -> None:
    """Write those that are missing, each a YAML beside its questions."""
    for kind, count in setting.questions.items():
        for domain in setting.domains:
            name = task_name(kind, domain)
            if not (folders.tasks / f"{name}.yaml").exists():
                _write(folders.tasks, name, _questions(setting, kind, domain, count=count))


def task_name(kind: str, domain: str) -> str:
    """As the command takes it. Words are those of general text, the same for all domains."""
    return "study_words" if kind == "words" else f"study_{kind}_{domain}"


def ask(model: Path, *, setting: Setting, domain: str, folders: Folders) -> dict[str, Row]:
    """By kind of question, the share that a model answers right, and its standard error.

    Args:
        model: a Hugging Face folder; the harness' results are written to it, too.
    """
    from training.tasks.evaluation import TaskOptions, evaluate_tasks

    names = {kind: task_name(kind, domain) for kind in setting.questions}
    out = model / "tasks.json"
    evaluate_tasks(
        model,
        TaskOptions(
            tasks=tuple(names.values()), tasks_dir=folders.tasks, batch_size=_AT_ONCE, out=out
        ),
    )
    found = json.loads(out.read_text(encoding="utf-8"))["results"]
    return {
        kind: {
            "right": round(found[name][f"{_METRIC[kind]},none"], 5),
            "standard_error": round(found[name][f"{_METRIC[kind]}_stderr,none"], 5),
        }
        for kind, name in names.items()
    }


def _questions(setting: Setting, kind: str, domain: str, *, count: int) -> list[Question]:
    if kind == "words":
        taken = setting.general_chars.get("dictionary", 0)
        return word_questions(spare_texts("dictionary", num_chars=taken), count=count)
    return line_questions(heldout_texts(setting, domain), count=count)


def _write(folder: Path, name: str, questions: list[Question]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    lines = (json.dumps(question._asdict()) + "\n" for question in questions)
    data.write_text("".join(lines), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "target_delimiter": "",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in sorted(set(_METRIC.values()))
        ],
        "metadata": {"version": 1.0},
    }
    staged = folder / f".{name}.yaml"
    staged.write_text(yaml.safe_dump(task), encoding="utf-8")
    staged.rename(folder / f"{name}.yaml")
