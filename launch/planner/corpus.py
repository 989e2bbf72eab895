"""What a plan reads of a corpus: its vocabulary, and the tokens of a pack and of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.replay_share import refuse_small_replay
from training.config.recipe import Recipe

if TYPE_CHECKING:
    from data_prep.shards import Corpus, Mixture, PackIndex


@dataclass(frozen=True)
class CorpusSize:
    """Of the train split and of replay; padding counts, since it is computed like the rest."""

    pack_tokens: int
    epoch_tokens: int
    """An epoch takes of each domain what the recipe says, or else the pack; then of replay."""
    top_k: int = 0
    """How many likeliest tokens of each position `teacher.scores` has; 0 where it is not there."""
    prediction_bytes: int = 0
    """Of its files, those beside the replay corpus included."""


def read_size(recipe: Recipe) -> CorpusSize | None:
    """Of the recipe's corpus, or None where it is not packed for this length yet.

    Raises:
        ValueError: for a corpus or a pack that exists but is incomplete, for a mixture of other
            domains, and for a replay corpus of too few samples.
    """
    length = recipe.data.sequence_tokens
    with _opened(recipe.data.corpus, key="data.corpus") as corpus:
        if corpus is None or not corpus.has_pack(length):
            return None
        corpora = [corpus]
        pack = corpus.open_pack(length)
        try:
            mixture = pack.mixture(recipe.data.mixture)
        except ValueError as error:
            raise ValueError(f"data.{error}") from None
    pack_samples = pack.num_samples("train")
    if recipe.replay is not None:
        with _opened(recipe.replay.corpus, key="replay.corpus") as corpus:
            if corpus is None or not corpus.has_pack(length):
                return None
            corpora.append(corpus)
            mixture = _with_replay(mixture, corpus.open_pack(length), share=recipe.replay.share)
        pack_samples = mixture[-1].samples.stop
        _check_replay(recipe, mixture)
    epoch_samples = sum(share.samples_per_epoch for share in mixture)
    return CorpusSize(pack_samples * length, epoch_samples * length, *_predictions(recipe, corpora))


def _predictions(recipe: Recipe, corpora: list[Corpus]) -> tuple[int, int]:
    """How many tokens a stored teacher has of each position, and the bytes of its files."""
    name = recipe.teacher and recipe.teacher.scores
    found = [corpus.open_scores(name) for corpus in corpora if name in corpus.score_names()]
    files = [file for scores in found for file in scores.manifest.all_files]
    num_kept = max((scores.num_kept for scores in found), default=0)
    return num_kept, sum(file.num_bytes for file in files)


def _with_replay(mixture: Mixture, pack: PackIndex, *, share: float) -> Mixture:
    from data_prep.shards import with_replay

    try:
        return with_replay(mixture, pack.manifest.splits["train"].domains, share=share)
    except ValueError as error:
        raise ValueError(f"replay.{error}") from None


def _check_replay(recipe: Recipe, mixture: Mixture) -> None:
    """As a start does: samples of the run are those of its epochs, or of its steps."""
    train, replay = recipe.train, recipe.replay
    if replay is None or replay.repeats:
        return
    total = max(1, round(train.epochs * sum(share.samples_per_epoch for share in mixture)))
    if train.max_steps is not None:
        step_samples = train.global_batch_tokens // recipe.data.sequence_tokens
        total = min(total, train.max_steps * step_samples)
    refuse_small_replay(mixture, total_samples=total, share=replay.share, corpus=replay.corpus)


def find_missing(recipe: Recipe) -> list[str]:
    """Why `read_size` knows nothing: a clause for each corpus that is absent, or not packed."""
    length = recipe.data.sequence_tokens
    named = {"data.corpus": recipe.data.corpus}
    if recipe.replay is not None:
        named["replay.corpus"] = recipe.replay.corpus
    missing = []
    for key, name in named.items():
        with _opened(name, key=key) as corpus:
            if corpus is None:
                missing.append(f"{key} {name} is not here")
            elif not corpus.has_pack(length):
                missing.append(f"{key} {name} is not packed for samples of {length:,} tokens")
    return missing


def read_vocab_size(recipe: Recipe) -> int | None:
    """Ids of the corpus's tokenizer, or None where there is no corpus yet.

    Raises:
        ValueError: for a corpus that exists but is incomplete.
    """
    with _opened(recipe.data.corpus, key="data.corpus") as corpus:
        return None if corpus is None else corpus.vocab_size


@contextmanager
def _opened(name: str, *, key: str) -> Iterator[Corpus | None]:
    folder = Path(name)
    try:
        if not folder.is_dir():
            yield None
            return
        # loads numpy, which a plan without a corpus does not need
        from data_prep.shards import is_corpus, open_corpus

        yield open_corpus(folder) if is_corpus(folder) else None
    except OSError as error:
        raise ValueError(f"{key}: {error.filename}: {error.strerror}") from None
