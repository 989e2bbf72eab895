"""What says of the project what it is: versions agree, forms and the workflow are well-formed."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import yaml

from tests.docs.markdown import REPO_ROOT

_PROJECT = tomllib.loads((REPO_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_GITHUB = REPO_ROOT / ".github"


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((REPO_ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == _PROJECT["version"]
    assert citation["license"] == _PROJECT["license"]
    assert citation["preferred-citation"]["url"] == _PROJECT["urls"]["Paper"]
    assert newest_section((REPO_ROOT / "CHANGELOG.md").read_text("utf-8")) == _PROJECT["version"]


def newest_section(changelog: str) -> str:
    return re.findall(r"^## \[(\d.*?)\]", changelog, flags=re.MULTILINE)[0]


def wrong_tags(repository: Path) -> list[str]:
    """Tags of versions whose commits have another version, or no section about it; CONTRIBUTING.md.

    None where this is no clone, or one without its tags.
    """
    wrong = []
    for tag in git(repository, "tag", "--list", "v[0-9]*").split():
        project = tomllib.loads(git(repository, "show", f"{tag}:pyproject.toml"))["project"]
        section = newest_section(git(repository, "show", f"{tag}:CHANGELOG.md"))
        if {project["version"], section} != {tag[1:]}:
            wrong.append(f"{tag}: pyproject.toml {project['version']}, CHANGELOG.md {section}")
    return wrong


def git(repository: Path, *arguments: str) -> str:
    user = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "safe.directory=*")
    command = ["git", "-C", str(repository), *user, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_each_tag_names_the_version_of_its_commit() -> None:
    assert not (REPO_ROOT / ".git").exists() or wrong_tags(REPO_ROOT) == []


def test_tags_of_other_versions_are_found(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    for version, section, tag in (("1", "1", "v1"), ("1", "2", "v2"), ("3", "2", "v3")):
        (tmp_path / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n')
        (tmp_path / "CHANGELOG.md").write_text(f"## [Unreleased]\n\n## [{section}] - today\n")
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "--quiet", "--message=x")
        git(tmp_path, "tag", tag)
    assert wrong_tags(tmp_path) == [
        "v2: pyproject.toml 1, CHANGELOG.md 2",
        "v3: pyproject.toml 3, CHANGELOG.md 2",
    ]


def test_the_workflow_calls_what_ci_runs() -> None:
    job = yaml.safe_load((_GITHUB / "workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]["test"]
    (command,) = [step["run"] for step in job["steps"] if "run" in step]
    assert os.access(REPO_ROOT / command.split()[-1], os.X_OK)
    assert yaml.safe_load(f"[{job['steps'][1]['with']['python-version']}]")  # and not 3.1 of 3.10


def test_issue_forms_ask_for_something() -> None:
    for form in ("bug", "idea"):
        content = yaml.safe_load((_GITHUB / f"ISSUE_TEMPLATE/{form}.yml").read_text("utf-8"))
        assert content["name"] and content["description"]
        ids = [field["id"] for field in content["body"]]
        assert len(set(ids)) == len(ids) > 1
