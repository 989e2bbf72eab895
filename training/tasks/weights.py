"""Which weights of a run or an export are evaluated, and of which step they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.checksum import record_file
from training.checkpoints.adapter_folder import is_adapter_folder
from training.checkpoints.choice import LAST, find_checkpoint
from training.checkpoints.manifest import (
    MANIFEST,
    find_corruption,
    newest_complete,
    read_manifest,
    trained_loss,
)
from training.config.load import KEPT_RECIPE


@dataclass(frozen=True)
class Weights:
    """A Hugging Face folder, or a checkpoint that has to be exported to one."""

    folder: Path
    run_dir: Path | None
    """None for a model that does not belong to a run, or is a mix of its weights."""
    checkpoint: Path | None = None
    step: int | None = None
    tokens: int | None = None
    heldout_loss: float | None = None

    def exported_to(self, folder: Path) -> Weights:
        """The same, once its checkpoint is there as a Hugging Face folder."""
        return replace(self, folder=folder, checkpoint=None)


def find_weights(target: Path, *, checkpoint: str | None) -> Weights:
    """The weights of `target`: an export as it is, a run by one of its checkpoints.

    An export of the same checkpoint in the run folder is reused.

    Args:
        checkpoint: as `find_checkpoint` takes it, last by default; only for a run.

    Raises:
        ValueError: for a folder that is neither, a run without a complete checkpoint, or a damaged
            export.
    """
    if (target / KEPT_RECIPE).exists():
        return _of_run(target, checkpoint or LAST)
    _refuse_adapter(target)
    if not (target / "config.json").exists():
        raise ValueError(f"{target} is neither a run folder nor a Hugging Face folder")
    if checkpoint is not None:
        raise ValueError(f"--checkpoint {checkpoint}: {target} is an export; name its run instead")
    return _of_export(target)


def _refuse_adapter(folder: Path) -> None:
    if is_adapter_folder(folder):
        raise ValueError(
            f"{folder} is an adapter, and tasks need a whole model: name its run, or export it "
            "with --merge"
        )


def _of_export(folder: Path) -> Weights:
    parent = folder.absolute().parent
    run_dir = parent if (parent / KEPT_RECIPE).exists() else None
    if not (folder / MANIFEST).exists():
        return Weights(folder, run_dir)
    if (broken := find_corruption(folder, hashes=True)) is not None:
        raise ValueError(f"the export is damaged: {broken}; export it again")
    if "mix" in read_manifest(folder):  # its results would pass for those of a checkpoint
        run_dir = None
    return Weights(folder, run_dir, **_facts(folder))


def _of_run(run_dir: Path, wanted: str) -> Weights:
    root, export = run_dir / "checkpoints", run_dir / "export"
    if wanted == LAST and newest_complete(root) is None and (export / MANIFEST).exists():
        _refuse_adapter(export)
        return _of_export(export)  # its checkpoints are gone
    chosen = find_checkpoint(run_dir, wanted)
    facts = _facts(chosen)
    is_whole = not is_adapter_folder(export) and find_corruption(export, hashes=True) is None
    if is_whole and _is_of(chosen, export):
        return Weights(export, run_dir, **facts)
    return Weights(export, run_dir, checkpoint=chosen, **facts)


def _is_of(checkpoint: Path, export: Path) -> bool:
    """Step and loss do not tell: another run in the same folder may have the same."""
    return (
        read_manifest(export).get("checkpoint_sha256") == record_file(checkpoint / MANIFEST).sha256
    )


def _facts(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    facts = {name: manifest[name] for name in ("step", "tokens")}
    return facts | {"heldout_loss": trained_loss(manifest)}
