"""The verb `mirror`: copies a corpus or an export to an object store, or back from it."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "copy a corpus or an export to an object store, or back"
DESCRIPTION = """\
Copy a finished folder, a corpus with its packs and scores or an export, to an object store
(s3://, gs://, hf://; the extra [remote] brings the clients), or bring it back. Credentials are
those that the store's own tools use.

Run again after a kill, it copies what is missing. A copy counts only when it is complete, and
every file that comes back is checked against its checksum. A place that holds anything else is
refused, also the copy of another corpus or export, unless --overwrite is given; of an older copy
there, only files that it lists itself are deleted. Training maps a corpus into memory, so it reads
the folder, not the store.

  python -m data_prep mirror data/notes s3://bucket/corpora/notes
  python -m data_prep mirror s3://bucket/corpora/notes data/notes
"""
_MARKERS = ("manifest.json", "complete.json")


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("source", metavar="FROM", help="folder or URL")
    verb.add_argument("target", metavar="TO", help="URL or folder; the other of the two")
    verb.add_argument(
        "--overwrite", action="store_true", help="replace the copy of another corpus or export"
    )


def run(options: argparse.Namespace) -> int:
    from common.mirror import download_folder, upload_folder
    from common.remote import folder_url, is_remote

    source, target = (
        folder_url(text) if is_remote(text) else text for text in (options.source, options.target)
    )
    if is_remote(source) == is_remote(target):
        raise ValueError(f"{source} {target}: one of them must be a URL, such as s3://bucket/name")
    if is_remote(source):
        download_folder(source, Path(target))
    else:
        last = next((name for name in _MARKERS if (Path(source) / name).is_file()), None)
        if last is None:
            raise ValueError(
                f"{source}: is no finished folder: it has no {' and no '.join(_MARKERS)}"
            )
        if not options.overwrite:
            _refuse_another(target, Path(source) / last)
        upload_folder(Path(source), target, last=last)
    print(f"mirrored   {target}")
    return 0


def _refuse_another(url: str, marker: Path) -> None:
    """Raise where the copy of another corpus or export is, which an upload would delete.

    The marker is the identity of a finished folder: packs and scores, which come later, are not in
    it, and every build or export writes another.
    """
    from common.checksum import record_file
    from common.mirror import listed_at

    listed = listed_at(url)
    markers = {name: listed[name] for name in _MARKERS if name in listed}
    if markers and markers != {marker.name: record_file(marker)}:
        raise ValueError(
            f"{url}: holds a copy of {_what_lies_at(url, next(iter(markers)))}, not of "
            f"{marker.parent}; choose another place, or replace it with --overwrite"
        )


def _what_lies_at(url: str, marker: str) -> str:
    import json

    from common.remote import read_bytes

    try:
        content = json.loads(read_bytes(f"{url}/{marker}") or "")
        if marker == "complete.json":
            return f"another export, of step {content['step']}"
        ledgers = [domain["ledger"] for domain in content["domains"]]
        num_documents = sum(ledger["num_documents_kept"] for ledger in ledgers)
        return f"another corpus, of {num_documents:,} documents"
    except (ValueError, KeyError, TypeError):  # an upload that was killed brought no marker yet
        return "another folder"
