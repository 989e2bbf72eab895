"""Greedy continuations of a few prompts with the current weights, the same on every layout.

B rows, T tokens of a sample, S = T / sp of this rank's shard, K prompts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data_prep.shards import Corpus
from training.config.recipe import Recipe
from training.data.documents import find_documents
from training.data.stream import IGNORE
from training.model.engine import Engine
from training.model.inputs import ModelInputs

_KEY = "evaluation.prompts"


@dataclass(frozen=True)
class Continuations:
    """Prompts as documents of one micro-batch, each with room for what follows.

    Every rank computes all rows, in one forward pass per token: nothing is kept of a pass, but it
    is one like those of an evaluation, so ZeRO-3 and sequence shards need nothing of their own.
    """

    prompts: Sequence[str]
    ids: Sequence[Sequence[int]]
    """Of each prompt, behind what the corpus begins documents with."""
    places: Sequence[tuple[int, int]]
    """Row and position at which each begins."""
    num_new_tokens: int
    shape: tuple[int, int]
    """B and T."""
    corpus: Corpus

    @classmethod
    def open(cls, recipe: Recipe, corpus: Corpus) -> Continuations | None:
        """Read and encode the prompts; None for a recipe without.

        Raises:
            ValueError: for a file without prompts, or with more than a micro-batch has room for.
        """
        path, num_new = recipe.evaluation.prompts, recipe.evaluation.prompt_tokens
        if path is None:
            return None
        prompts = read_prompts(Path(path))
        prefix = corpus.manifest.special_ids.document_prefix
        ids = [(*prefix, *map(int, one)) for one in corpus.tokenizer.encode(prompts)]
        if not all(ids):
            raise ValueError(f"{_KEY}: {path}: a prompt has no tokens")
        shape = recipe.train.micro_batch_samples, recipe.data.sequence_tokens
        lengths = [len(one) + num_new for one in ids]
        places = _places(lengths, room=shape[1])
        if max(lengths) > shape[1] or places[-1][0] >= shape[0]:
            raise ValueError(
                f"{_KEY}: {path}: {len(ids)} prompts, each with evaluation.prompt_tokens {num_new}"
                f", take {sum(lengths)} tokens, the longest {max(lengths)}; a micro-batch has "
                f"{shape[0]} x {shape[1]}: take fewer or shorter ones"
            )
        return cls(prompts, ids, places, num_new, shape, corpus)

    def rows(self, engine: Engine) -> list[dict[str, str]]:
        """By prompt, its text and the continuation; every rank calls it."""
        new_ids = self.new_ids(engine).tolist()
        given = zip(self.prompts, self.ids, new_ids, strict=True)
        return [{"prompt": prompt, "text": self._text(ids, new)} for prompt, ids, new in given]

    def new_ids(self, engine: Engine) -> Tensor:
        """The likeliest token, again and again: int64 `[K, num_new_tokens]`."""
        layout = engine.layout
        ids_BT, position_ids_BT = self._micro_batch()
        shard = self.shape[1] // layout.sp_size
        own = slice(layout.sp_rank * shard, (layout.sp_rank + 1) * shard)
        ids_BS = ids_BT[:, own].contiguous().to(layout.device)
        inputs = ModelInputs(
            ids_BS=ids_BS,
            position_ids_BS=position_ids_BT[:, own].contiguous().to(layout.device),
            targets_BS=torch.full_like(ids_BS, IGNORE),
            documents=find_documents(position_ids_BT, device=layout.device),
            token_index_BS=torch.zeros_like(ids_BS),
        )
        rows_K, starts_K = torch.tensor(self.places).T
        last_K = starts_K + torch.tensor([len(ids) - 1 for ids in self.ids])
        found = []
        for _ in range(self.num_new_tokens):
            is_own_K = (last_K >= own.start) & (last_K < own.stop)
            place_K = rows_K * shard + (last_K - own.start).clamp(0, shard - 1)
            next_K = engine.likeliest(inputs, place_K.to(layout.device))
            next_K = next_K * is_own_K.to(layout.device)
            if engine.sp_group is not None:  # one rank of the group has each
                dist.all_reduce(next_K, group=engine.sp_group)
            last_K = last_K + 1
            ids_BT[rows_K, last_K] = next_K.cpu()
            inputs = replace(inputs, ids_BS=ids_BT[:, own].contiguous().to(layout.device))
            found.append(next_K.cpu())
        return torch.stack(found, dim=1)

    def _micro_batch(self) -> tuple[Tensor, Tensor]:
        """Ids and positions of the whole rows; what no prompt fills is a document, too."""
        ids_BT = torch.zeros(self.shape, dtype=torch.int64)
        position_ids_BT = torch.arange(self.shape[1]).repeat(self.shape[0], 1)
        for (row, start), ids in zip(self.places, self.ids, strict=True):
            end = start + len(ids) + self.num_new_tokens
            ids_BT[row, start : start + len(ids)] = torch.tensor(ids)
            position_ids_BT[row, start:end] = torch.arange(end - start)
            position_ids_BT[row, end:] = torch.arange(self.shape[1] - end)
        return ids_BT, position_ids_BT

    def _text(self, ids: Sequence[int], new: Sequence[int]) -> str:
        """To the end of the document; sentencepiece decodes a space only behind something."""
        decode, eos = self.corpus.tokenizer.decode, self.corpus.manifest.special_ids.eos
        new = new[: new.index(eos)] if eos in new else new
        before, both = decode(ids), decode([*ids, *new])
        return both.removeprefix(before) if both.startswith(before) else decode(new)


def read_prompts(path: Path) -> list[str]:
    """A prompt in each line; of a .jsonl file its key `prompt`, which may hold line breaks.

    Raises:
        ValueError: for a file that cannot be read, or has none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{_KEY}: {path}: {getattr(error, 'strerror', error)}") from None
    # not splitlines: a prompt in JSON may hold the other characters that end a line
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"{_KEY}: {path} is empty; write a prompt into each line")
    return lines if path.suffix != ".jsonl" else [_prompt_of(line, path) for line in lines]


def _prompt_of(line: str, path: Path) -> str:
    try:
        record: Any = json.loads(line)
    except ValueError:
        record = None
    prompt = record.get("prompt") if isinstance(record, dict) else None
    if not isinstance(prompt, str) or not prompt:
        raise ValueError(f'{_KEY}: {path}: expected {{"prompt": "..."}}, found {line[:80]}')
    return prompt


def _places(lengths: Sequence[int], *, room: int) -> list[tuple[int, int]]:
    """Row and start of each, in their order: 5 4 3 in rows of 10 gives (0, 0) (0, 5) (1, 0)."""
    places, row, start = [], 0, 0
    for length in lengths:
        if start and start + length > room:
            row, start = row + 1, 0
        places.append((row, start))
        start += length
    return places
