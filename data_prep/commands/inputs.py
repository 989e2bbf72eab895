"""Flags that select what is read: inputs, record fields and files of a folder."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from common.hints import did_you_mean
from data_prep.reading.fields import ROLES, Fields

if TYPE_CHECKING:
    from data_prep.reading.folders import Globs


def add_input_argument(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="[NAME=]PATH",
        help="files, folders, URLs of object stores and hf: names, optionally with a domain",
    )


def add_reading_arguments(reading: argparse._ArgumentGroup) -> None:
    """Add the flags for fields, files of folders and bad documents."""
    add_field_arguments(reading)
    reading.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="GLOB",
        help="in folders, read only matching files (repeatable); with a slash, match the path",
    )
    reading.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="in folders, skip matching files and folders (repeatable)",
    )
    reading.add_argument(
        "--no-ignore-files",
        dest="heed_ignore_files",
        action="store_false",
        help="in folders, also read what a .gitignore excludes",
    )
    reading.add_argument(
        "--json-as-text",
        action="store_true",
        help="read .json files as text, as in a source tree; else they hold records",
    )
    reading.add_argument(
        "--extract",
        choices=["file", "page"],
        default="",
        help="read the text of PDF, HTML and Word files (the extra [documents]): a document per "
        "file, or per page or section",
    )
    reading.add_argument(
        "--on-error",
        choices=["fail", "skip"],
        default="fail",
        help="stop at a bad document (default), or skip it; build counts the skipped ones",
    )


def globs_from(options: argparse.Namespace) -> Globs:
    from data_prep.reading.folders import Globs

    return Globs(
        include=tuple(options.include),
        exclude=tuple(options.exclude),
        heed_ignore_files=options.heed_ignore_files,
        json_as_text=options.json_as_text,
        extract=options.extract,
    )


def add_field_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="[DOMAIN.]ROLE=KEY",
        help=f"role of a record field (repeatable); roles: {', '.join(ROLES)} (default: text=text)",
    )
    group.add_argument(
        "--text-key", metavar="KEY", help="short for --field text=KEY (default: text)"
    )
    group.add_argument(
        "--ids-key",
        metavar="KEY",
        help="short for --field ids=KEY, for tokenised input; ids are kept as they are",
    )


def fields_from(options: argparse.Namespace) -> tuple[Fields, dict[str, Fields]]:
    """The default fields, and those of domains that have their own."""
    by_domain: dict[str, dict[str, Any]] = {"": {}}
    for key, role in ((options.text_key, "text"), (options.ids_key, "ids")):
        if key:
            by_domain[""][role] = key
    for text in options.field:
        target, equals, key = text.partition("=")
        domain, _, role = target.rpartition(".")
        if not equals or not key:
            raise ValueError(
                f"--field {text}: expected [DOMAIN.]ROLE=KEY, such as chat.messages=turns"
            )
        if role not in ROLES:
            raise ValueError(
                f"--field {text}: unknown role {role!r}; roles are {', '.join(ROLES)}"
                f"{did_you_mean(role, ROLES, cutoff=0.0)}"
            )
        if role in by_domain.setdefault(domain, {}):
            raise ValueError(f"--field {text}: {target} is given twice")
        by_domain[domain][role] = key
    default = by_domain.pop("") or {"text": "text"}
    return Fields(**default), {name: Fields(**roles) for name, roles in by_domain.items()}
