"""A machine whose GPUs cannot be used is told so, and does not train on its CPU in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.ranks.lost_gpus import refuse_lost_gpus


@pytest.mark.parametrize("visible", [None, "0", "0,1", "GPU-8ad2"])
def test_gpus_that_are_there_or_asked_for_are_missed(tmp_path, monkeypatch, visible):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if visible is None:
        for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
            (tmp_path / name).touch()
        told = f"{tmp_path} has nvidia0, nvidia1, but torch finds no GPU"
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        told = f"CUDA_VISIBLE_DEVICES is {visible}, but torch finds no GPU"
    with pytest.raises(ValueError, match=told):
        refuse_lost_gpus(tmp_path)


@pytest.mark.parametrize("visible", [None, "", "-1"])
def test_a_machine_without_gpus_or_whose_user_hides_them_trains_on_its_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        (tmp_path / "nvidia0").touch()
    refuse_lost_gpus(tmp_path)
