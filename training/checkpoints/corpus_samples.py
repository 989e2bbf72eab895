"""Texts and documents of a corpus with their ids: what an export is compared with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from data_prep.shards import Corpus
from training.model.tokenizer_check import ExpectedTokens
from training.model.tokenizers import PROBES

_NUM_DOCUMENTS = 32
_NUM_FOR_LOSSES = 4
"""A forward pass of a large model takes long on a CPU."""
_DOCUMENT_TOKENS = 48


@dataclass(frozen=True)
class CorpusSamples:
    """Small enough to be kept with a run, for the day when the corpus is gone."""

    tokens: ExpectedTokens
    documents: tuple[tuple[int, ...], ...]
    """The beginnings of some documents, as they are trained on."""


def sample_corpus(corpus: Corpus) -> CorpusSamples:
    """Documents spread evenly over the training split, and texts made of them.

    Texts are encoded again, not taken from the shards: a document may have been given as ids, or
    as a conversation, and its beginning may end within a character.
    """
    num = corpus.num_documents()
    numbers = sorted({i * num // _NUM_DOCUMENTS for i in range(_NUM_DOCUMENTS)} if num else ())
    documents = [corpus.document(number)[:_DOCUMENT_TOKENS].tolist() for number in numbers]
    specials = corpus.manifest.special_ids
    added = {*specials.document_prefix, *specials.document_suffix}
    tokenizer = corpus.tokenizer
    texts = [tokenizer.decode([id for id in ids if id not in added]) for ids in documents]
    texts = [*PROBES, *filter(None, texts)]
    ids_of_texts = [tuple(ids.tolist()) for ids in tokenizer.encode(texts)]
    known = {role: getattr(specials, role) for role in ("bos", "eos", "pad")}
    return CorpusSamples(
        tokens=ExpectedTokens(
            texts=tuple(zip(texts, ids_of_texts, strict=True)),
            prefix=specials.document_prefix,
            specials={
                role: (tokenizer.decode([id]), id) for role, id in known.items() if id is not None
            },
        ),
        documents=tuple(map(tuple, documents[:: _NUM_DOCUMENTS // _NUM_FOR_LOSSES])),
    )


def dump_samples(samples: CorpusSamples) -> bytes:
    return (json.dumps(asdict(samples), indent=1) + "\n").encode()


def load_samples(content: bytes) -> CorpusSamples:
    """Inverse of `dump_samples`."""
    raw = json.loads(content)
    tokens = raw["tokens"]
    return CorpusSamples(
        tokens=ExpectedTokens(
            texts=tuple((text, tuple(ids)) for text, ids in tokens["texts"]),
            prefix=tuple(tokens["prefix"]),
            specials={role: (token, id) for role, (token, id) in tokens["specials"].items()},
        ),
        documents=tuple(map(tuple, raw["documents"])),
    )
