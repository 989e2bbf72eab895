"""What says of the project what it is: versions agree, forms and the workflow are well-formed."""

from __future__ import annotations

import os
import re
import tomllib

import yaml

from tests.docs.markdown import REPO_ROOT

_PROJECT = tomllib.loads((REPO_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_GITHUB = REPO_ROOT / ".github"


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((REPO_ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == _PROJECT["version"]
    assert citation["license"] == _PROJECT["license"]
    assert citation["preferred-citation"]["url"] == _PROJECT["urls"]["Paper"]
    changes = (REPO_ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(\d.*?)\]", changes, flags=re.MULTILINE)[0] == _PROJECT["version"]


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
