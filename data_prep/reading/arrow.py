"""Readers that use Hugging Face `datasets`: .arrow files, saved folders, the hub (streamed)."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_prep.reading.documents import BadInput, document_of
from data_prep.reading.fields import Fields
from data_prep.reading.parts import PART_BYTES, InputFile, Item, Part

_BLOCK_ROWS = 1024
HUB_PREFIX = "hf:"
FEATHER_TO_PARQUET = (
    "python -c 'import sys, pyarrow.feather as read, pyarrow.parquet as write; "
    'write.write_table(read.read_table(sys.argv[1]), "converted.parquet")\''
)
_FEATHER_MARK = b"ARROW1"


def is_saved_dataset(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` wrote the folder."""
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def splits_of_saved_dict(folder: Path) -> list[str]:
    """Names of the splits that `DatasetDict.save_to_disk` put into the folder."""
    if not (folder / "dataset_dict.json").is_file():
        return []
    return sorted(path.name for path in folder.iterdir() if is_saved_dataset(path))


class Arrow:
    """Memory-mapped by `datasets`; parts are rows."""

    def cut(self, file: InputFile, *, start: int, fields: Fields) -> Iterator[Part]:
        try:
            dataset = _open(file)
        except Exception as error:  # the library raises all kinds of errors
            yield Part(file, 0, 0, data=_feather(file.path) or _broken(error))
            return
        step = max(1, PART_BYTES * len(dataset) // max(1, file.num_bytes))
        share = file.num_bytes / max(1, len(dataset))
        for begin in range(start, len(dataset), step):
            end = min(begin + step, len(dataset))
            yield Part(file, begin, end, num_bytes=int(share * (end - begin)))

    def read(self, part: Part, *, fields: Fields) -> Iterator[Item]:
        if isinstance(part.data, BadInput):
            yield part.data
            return
        dataset = _open(part.file)
        roots = fields.roots(dataset.column_names)
        # where one is missing, an error names what is there
        columns = roots if {*roots} <= {*dataset.column_names} else dataset.column_names
        table = dataset.select_columns(columns).with_format("arrow")[part.start : part.end]
        for row in range(part.end - part.start):
            record: dict[str, Any] = {}
            for name in columns:
                try:
                    record[name] = table.column(name)[row].as_py()
                except UnicodeDecodeError as error:
                    detail = error.reason
                    bad = BadInput(part.start + row, reason="invalid UTF-8", detail=detail)
                    record[name] = bad
            yield document_of(record, place=part.start + row, wanted=fields)


class Hub:
    """`hf:NAME`, `hf:NAME@CONFIG`, `hf:NAME:SPLIT`: streamed, so nothing is stored locally."""

    def cut(self, file: InputFile, *, start: int, fields: Fields) -> Iterator[Part]:
        dataset = _stream(file.path)
        place, rows, num_chars = start, [], 0
        for row in dataset.skip(start) if start else dataset:
            rows.append(fields.part_of(row))
            num_chars += sum(len(str(value)) for value in rows[-1].values())
            if len(rows) >= _BLOCK_ROWS or num_chars >= PART_BYTES:
                yield Part(file, place, place + len(rows), data=rows)
                place, rows, num_chars = place + len(rows), [], 0
        if rows:
            yield Part(file, place, place + len(rows), data=rows)

    def read(self, part: Part, *, fields: Fields) -> Iterator[Item]:
        for number, row in enumerate(part.data):
            yield document_of(row, place=part.start + number, wanted=fields)


def parse_hub_name(text: str) -> tuple[str, str | None, str]:
    """Name, config and split: `hf:allenai/c4@en:validation`; the split is `train` by default."""
    name, _, split = text.removeprefix(HUB_PREFIX).partition(":")
    name, _, config = name.partition("@")
    return name, config or None, split or "train"


def _stream(text: str) -> Any:
    import datasets

    name, config, split = parse_hub_name(text)
    try:
        return datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # the library raises all kinds of errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"--input {text}: datasets cannot open it: {reason}") from None


@lru_cache(maxsize=4)
def _open(file: InputFile) -> Any:
    import datasets

    datasets.disable_progress_bars()
    if Path(file.path).is_dir():
        return datasets.load_from_disk(file.path)
    return datasets.Dataset.from_file(file.path)


def _feather(name: str) -> BadInput | None:
    """Of a file with an index at its end, which `datasets` does not write and does not read."""
    path = Path(name)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        if file.read(len(_FEATHER_MARK)) != _FEATHER_MARK:
            return None
    detail = f"convert it with `{FEATHER_TO_PARQUET} {shlex.quote(name)}`"
    return BadInput(0, reason="an Arrow file with an index (Feather), not a stream", detail=detail)


def _broken(error: Exception) -> BadInput:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return BadInput(0, reason="broken Arrow data", detail=lines[0])
