"""The pack of a corpus that a run uses beside its own: the same tokenizer, the same length."""

from __future__ import annotations

from data_prep.shards import Corpus, PackIndex, open_corpus


def open_pack_like(pack: PackIndex, folder: str, *, key: str) -> PackIndex:
    """The pack of another corpus.

    Args:
        pack: of the run's own corpus.
        key: of the recipe that names the other, for messages.

    Raises:
        ValueError: when it cannot be read, has another tokenizer, or is not packed for samples of
            that length.
    """
    try:
        corpus = open_corpus(folder)
        _check_tokenizer(corpus, pack.corpus)
        return corpus.open_pack(pack.seq_len)
    except (ValueError, OSError) as error:
        raise ValueError(f"{key}: {error}") from None


def _check_tokenizer(corpus: Corpus, own: Corpus) -> None:
    found, expected = corpus.manifest.tokenizer, own.manifest.tokenizer
    if not found.gives_ids_of(expected):
        raise ValueError(
            f"{corpus.folder} has another tokenizer (sha256 {found.sha256[:16]}) than data.corpus "
            f"{own.folder} ({expected.sha256[:16]}), so its ids mean other text; build it with "
            f"--tokenizer {own.tokenizer_dir}"
        )
