"""Where Triton cannot compile, the head says so and computes with torch."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from training.entrodrop.kernels import can_compile_kernels


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("training.entrodrop.kernels.find_spec", lambda name: name)
    can_compile_kernels.cache_clear()
    yield
    can_compile_kernels.cache_clear()


def compiler_in(folder: Path, name: str) -> None:
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_a_compiler_and_pythons_header_are_enough(tmp_path, monkeypatch, name, capsys):
    compiler_in(tmp_path, name)
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    assert can_compile_kernels()
    assert capsys.readouterr().err == ""


def test_what_is_missing_is_said_once_and_by_rank_0(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not can_compile_kernels()
    assert not can_compile_kernels()
    assert capsys.readouterr().err.count("no C compiler (gcc or clang) on PATH") == 1
    can_compile_kernels.cache_clear()
    compiler_in(tmp_path, "mine")
    monkeypatch.setenv("CC", "mine")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    assert not can_compile_kernels()
    assert f"{tmp_path / 'Python.h'} does not exist" in capsys.readouterr().err
    can_compile_kernels.cache_clear()
    with monkeypatch.context() as context:
        context.setenv("RANK", "3")
        assert not can_compile_kernels()
    assert capsys.readouterr().err == ""
