"""Write docs/tree.md: every file of the repository with the first line of its docstring."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- tree: written by docs/generate_tree.py -->\n", "<!-- end of tree -->\n"
_FOLDERS = {
    "common": "shared by all packages: files, locks, progress, hints; no torch",
    "data_prep": "raw text to shards and packed samples; never imports torch",
    "data_prep/commands": "one module per verb: flags, help and call",
    "data_prep/reading": "inputs of every kind to documents; errors name the place",
    "data_prep/tokenizing": "documents to token ids, identical to the reference library's",
    "data_prep/cleaning": "find duplicates and benchmark text, to leave them out of packs",
    "data_prep/packing": "documents to samples of S tokens: an index, not a copy",
    "data_prep/viewing": "look at a corpus: terminal, HTML page, statistics",
    "training": "recipe to trained, exported model",
    "training/commands": "one verb a module; each loads what it needs when it runs",
    "training/config": "what a recipe may say, and how it is read; no torch",
    "training/entrodrop": "THE METHOD: torch only, liftable into any trainer",
    "training/run": "a run from its first check to its last step; also evaluation and scoring",
    "training/regularisers": "EntroDrop in a step, its entropies, baselines; table.py names them",
    "training/model": "DeepSpeed and transformers, joined with the recipe",
    "training/data": "samples of a pack in their order, and their documents",
    "training/ranks": "the processes of a run: who they are, how they stop, what they leave behind",
    "training/metrics": "numbers of a run: on the screen, in metrics.jsonl, in TensorBoard",
    "training/checkpoints": "whole or absent: written, found, kept, loaded on any layout",
    "training/reports": "runs as people see them: groups of seeds, figures, one page",
    "training/sweeps": "many runs of one recipe, here or under Slurm",
    "training/tasks": "benchmarks by lm-evaluation-harness",
    "training/recipes": "one YAML file a run",
    "launch": "from a recipe to processes",
    "launch/commands": "one module a verb: new, plan, preflight",
    "launch/console": "the command `entrodrop`",
    "launch/planner": "what a run takes, before it starts; loads no torch",
    "launch/preflight": "checks on all ranks before a run, each with what to do",
    "launch/slurm": "jobs that queue themselves again",
    "launch/kubernetes": "a JobSet, and what runs in its containers",
    "launch/clouds": "files for SkyPilot and dstack",
    "ds_configs": "DeepSpeed JSON: memory and communication, nothing that decides what is learnt",
    "benchmarks": "each measured against a plain reference",
    "benchmarks/study": "does it help? arms, seeds and domains, from text to verdict",
    "benchmarks/gpu_proof": "what a GPU shows of this project, in one command; on a CPU, its logic",
    "docker": "images for training and for data preparation, and a cluster of two containers",
    "docs": "pages for users and contributors",
    "tests": "by package; a test's name is a property",
}
_SUFFIXES = (".py", ".sh", ".sbatch", ".yaml")
_COLUMN = 28


def tree() -> str:
    """The tree as text, one line a file."""
    lines = []
    for folder, purpose in _FOLDERS.items():
        path = REPO_ROOT / folder
        if not path.is_dir():
            continue
        indent = "  " * folder.count("/")
        lines.append(_line(f"{indent}{path.name}/", purpose))
        files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
        # The tests' names say what they are; a sentence for each would drown the tree.
        for file in [] if folder == "tests" else files:
            if sentence := first_sentence(file):
                lines.append(_line(f"{indent}  {file.name}", sentence))
    return "\n".join(lines) + "\n"


def first_sentence(file: Path) -> str:
    """First line of a module's docstring, or the first comment of a script; "" when empty."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    comments = [line for line in text.splitlines() if line.startswith("# ")]
    return comments[0].removeprefix("# ") if comments else ""


def page_with_tree(page: str) -> str:
    """Text of the page in which the part between the marks is the present tree."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"docs/tree.md lacks the marks {BEGIN.strip()} and {END.strip()}")
    return f"{before}{BEGIN}```text\n{tree()}```\n{END}{after}"


def _line(name: str, sentence: str) -> str:
    return f"{name:<{_COLUMN}}{sentence}" if len(name) < _COLUMN else f"{name}  {sentence}"


if __name__ == "__main__":
    path = REPO_ROOT / "docs" / "tree.md"
    path.write_text(page_with_tree(path.read_text(encoding="utf-8")), encoding="utf-8")
    print(path.relative_to(REPO_ROOT), file=sys.stderr)
