"""Flags that say which fields of a record make up a document, for all domains or for one."""

from __future__ import annotations

import argparse
import difflib
from typing import Any

from data_prep.reading.documents import ROLES, Fields


def add_field_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="[DOMAIN.]ROLE=KEY",
        help=f"what a field of a record is (repeatable); roles: {', '.join(ROLES)} "
        "(default: text=text)",
    )
    group.add_argument(
        "--text-key", metavar="KEY", help="short for --field text=KEY (default: text)"
    )
    group.add_argument(
        "--ids-key",
        metavar="KEY",
        help="short for --field ids=KEY, for a corpus that is tokenised already; kept as it is",
    )


def fields_from(options: argparse.Namespace) -> tuple[Fields, dict[str, Fields]]:
    """Fields for every domain, and for those that have their own."""
    by_domain: dict[str, dict[str, Any]] = {"": {}}
    for key, role in ((options.text_key, "text"), (options.ids_key, "ids")):
        if key:
            by_domain[""][role] = key
    for text in options.field:
        target, equals, key = text.partition("=")
        domain, _, role = target.rpartition(".")
        if not equals or not key:
            raise ValueError(f"--field {text}: expected [DOMAIN.]ROLE=KEY, as chat.messages=turns")
        if role not in ROLES:
            near = difflib.get_close_matches(role, ROLES, n=1, cutoff=0.0)
            raise ValueError(
                f"--field {text}: unknown role {role!r}; roles are {', '.join(ROLES)}; did you "
                f"mean {near[0]}?"
            )
        if role in by_domain.setdefault(domain, {}):
            raise ValueError(f"--field {text}: {target} is named twice")
        by_domain[domain][role] = key
    default = by_domain.pop("") or {"text": "text"}
    return Fields(**default), {name: Fields(**roles) for name, roles in by_domain.items()}
