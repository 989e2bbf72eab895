"""Turns the word of a command's --checkpoint into a folder: best, last, step-N or a path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.hints import did_you_mean
from training.checkpoints.identity import judged_alike
from training.checkpoints.manifest import (
    find_corruption,
    judged_loss,
    newest_complete,
    read_manifest,
)

BEST, LAST = "best", "last"
_OLD_NAME_OF_LAST = "newest"
_LATE = re.compile(rf"{LAST}-(\d+)")


def find_checkpoint(run_dir: Path, word: str) -> Path:
    """The checkpoint of a run that `word` means; its files are there, their content is not read.

    Args:
        word: best, by the held-out loss that its recipe chose (`evaluation.best_by`); last, or its
            older name newest; step-N with or without zeros before N; or a folder.

    Raises:
        ValueError: when there is no such checkpoint, or it is incomplete.
    """
    root = run_dir / "checkpoints"
    if word == BEST:
        chosen = _best_complete(root)
    elif word in (LAST, _OLD_NAME_OF_LAST):
        chosen = newest_complete(root)
    else:
        chosen = _named(root, word)
    if chosen is None:
        judged = " with a held-out loss" if word == BEST else ""
        raise ValueError(f"{root} holds no complete checkpoint{judged}; train first")
    if (broken := find_corruption(chosen)) is not None:
        raise ValueError(f"checkpoint is incomplete or damaged: {broken}")
    return chosen


def means_several(word: str) -> bool:
    """Whether it is last-N, which only a command that takes a mean understands."""
    return _LATE.fullmatch(word) is not None


@contextmanager
def explaining_removals(run_dir: Path) -> Iterator[None]:
    """Within it a checkpoint is read, which a run that goes on may remove at any moment.

    Raises:
        ValueError: in the place of an error about a checkpoint that is gone by now.
    """
    root = run_dir / "checkpoints"
    before = {path.name for path in root.glob("step-*")}
    try:
        yield
    except (OSError, ValueError) as error:
        is_read = isinstance(error, FileNotFoundError)  # and no mere name of the user's
        named = re.findall(r"step-\d{8}", str(error))
        gone = [n for n in named if (is_read or n in before) and not (root / n).exists()]
        if not gone:
            raise
        raise ValueError(
            f"{root / gone[0]} was removed while it was read: the run goes on and keeps only the "
            "newest and the best; try again, or set checkpoint.keep_last higher"
        ) from None


def find_checkpoints(run_dir: Path, word: str) -> list[Path]:
    """Those that a word of `--average` means: last-N is the newest N, others are of one.

    Raises:
        ValueError: as `find_checkpoint`, and where there are fewer than N.
    """
    late = _LATE.fullmatch(word)
    if late is None:
        return [find_checkpoint(run_dir, word)]
    root, wanted = run_dir / "checkpoints", int(late[1])
    complete = sorted(path for path in root.glob("step-*") if find_corruption(path) is None)
    if not 0 < wanted <= len(complete):
        names = ", ".join(f"step-{int(path.name.removeprefix('step-'))}" for path in complete)
        raise ValueError(
            f"{word}: {root} holds {len(complete)} complete checkpoints ({names or 'none'}); "
            "checkpoint.keep_last says how many are kept"
        )
    return complete[-wanted:]


def _best_complete(root: Path) -> Path | None:
    """The complete checkpoint with the lowest held-out loss, the first if several.

    Those from before a resume that accepted another loss do not count.
    """
    complete = [folder for folder in root.glob("step-*") if find_corruption(folder) is None]
    manifests = {folder: read_manifest(folder) for folder in complete}
    if not manifests:
        return None
    newest = max(manifests.values(), key=lambda manifest: int(manifest["step"]))
    judged = [
        (loss, folder)
        for folder, manifest in manifests.items()
        if (loss := judged_loss(manifest)) is not None and judged_alike(manifest, newest)
    ]
    return min(judged)[1] if judged else None


def _named(root: Path, word: str) -> Path:
    """Of a step, or a folder as it is."""
    step = re.fullmatch(r"step-(\d+)", word)
    folder = root / f"step-{int(step[1]):08d}" if step else Path(word)
    if word and folder.is_dir():  # no name would be the current folder
        return folder
    there = [f"step-{int(path.name.removeprefix('step-'))}" for path in sorted(root.glob("step-*"))]
    otherwise = f"there are {', '.join([BEST, LAST, *there])}"
    # of another step no name is nearer: all of them look alike
    hint = f"; {otherwise}" if step else did_you_mean(word, [BEST, LAST], otherwise=otherwise)
    raise ValueError(
        f"--checkpoint {word or repr(word)}: no such checkpoint in {root}, and no such folder{hint}"
    )
