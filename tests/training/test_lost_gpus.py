"""A machine whose GPUs cannot be used is told so, and does not train on its CPU in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.ranks.lost_gpus import refuse_lost_gpus


def set_visible(value: str | None, patch: pytest.MonkeyPatch) -> None:
    patch.delenv("CUDA_VISIBLE_DEVICES")
    if value is not None:
        patch.setenv("CUDA_VISIBLE_DEVICES", value)


@pytest.mark.parametrize("visible", [None, "0", "0,1"])
def test_gpus_that_torch_does_not_find_are_missed(tmp_path, monkeypatch, visible):
    set_visible(visible, monkeypatch)
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    told = f"{tmp_path} has nvidia0, nvidia1, but torch finds no GPU"
    with pytest.raises(ValueError, match=told):
        refuse_lost_gpus(tmp_path)


@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_user_may_hide_them(tmp_path, monkeypatch, visible):
    set_visible(visible, monkeypatch)
    (tmp_path / "nvidia0").touch()
    refuse_lost_gpus(tmp_path)


@pytest.mark.parametrize("visible", [None, "0,1"])
def test_a_machine_without_gpus_trains_on_its_cpu(tmp_path: Path, monkeypatch, visible):
    """Also where DeepSpeed's launcher has numbered its processes."""
    set_visible(visible, monkeypatch)
    refuse_lost_gpus(tmp_path)
