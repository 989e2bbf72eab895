"""Messages and help name commands as the user called them: `entrodrop`, or `python -m`."""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import re
from pathlib import Path

import pytest

import data_prep.__main__
import launch.__main__
import training.__main__
from common.commands import CALLED_AS, command, with_commands
from launch.console.own_verbs import run_own_verb

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("common", "data_prep", "training", "launch")
DECIDES = ROOT / "common" / "commands.py"
AS_MODULE = re.compile(rf"-m ({'|'.join(PACKAGES)})\b")
# shown through with_commands
HELP = {"DESCRIPTION", "_DESCRIPTION", "_EPILOG", "_EXAMPLES"}


def help_of(parser: argparse.ArgumentParser) -> str:
    texts = [parser.format_help()]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts += [help_of(verb) for verb in action.choices.values()]
    return "\n".join(texts)


def unsaid_literals(tree: ast.Module) -> list[str]:
    """The strings of a module but docstrings and help."""
    left_out = set()
    for node in ast.walk(tree):
        is_help = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in HELP
        if is_help or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            left_out |= {id(part) for part in ast.walk(node)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [str(node.value) for node in constants if id(node) not in left_out]


def test_one_place_decides_how_commands_are_named() -> None:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert DECIDES in paths
    for path in paths:
        if path != DECIDES:
            said = unsaid_literals(ast.parse(path.read_text()))
            named = [text for text in said if AS_MODULE.search(text)]
            assert not named, f"{path.relative_to(ROOT)}: use common.commands: {named}"


@pytest.mark.parametrize(
    ("words", "as_module", "as_console"),
    [
        ("training export a/run", "python -m training export a/run", "entrodrop export a/run"),
        ("launch plan", "python -m launch plan", "entrodrop plan"),
        ("data_prep pack d", "python -m data_prep pack d", "entrodrop prep pack d"),
        ("data_prep", "python -m data_prep", "entrodrop prep"),
    ],
)
def test_a_command_is_named_as_it_was_called(
    words: str, as_module: str, as_console: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CALLED_AS, raising=False)
    assert command(words) == as_module
    monkeypatch.setenv(CALLED_AS, "entrodrop")
    assert command(words) == as_console
    assert with_commands(f"mpirun {as_module} x") == f"mpirun {as_console} x"


def test_help_and_errors_of_the_console_command_name_no_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv(CALLED_AS, "entrodrop")
    for module in (training.__main__, launch.__main__, data_prep.__main__):
        text = help_of(module.build_parser())
        assert "entrodrop " in text and "python -m" not in text
    assert data_prep.__main__.main(["pack", str(tmp_path), "--seq-len", "8"]) == 2
    assert "`entrodrop prep build` writes it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("is_clone", "installed", "told"),
    [(True, "8.8", "0.9, from "), (False, "8.8", "8.8\n"), (False, None, "of an unknown version")],
)
def test_every_command_says_its_version(
    is_clone: bool,
    installed: str | None,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr("common.verbs.__file__", str(tmp_path / "common" / "verbs.py"))
    if is_clone:
        (tmp_path / "pyproject.toml").write_text('[project]\nversion = "0.9"\n')
    mains = [module.main for module in (training.__main__, launch.__main__, data_prep.__main__)]
    for run in (*mains, lambda arguments: run_own_verb(arguments[0], [])):
        with pytest.raises(SystemExit, match=r"^0$"):
            run(["--version"])
        assert capsys.readouterr().out.startswith(f"entrodrop {told}")
