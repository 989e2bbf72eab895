"""What a set of weights knows: losses, completed words and canaries, by plain transformers.

B texts, T tokens of the longest of them, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.study.canaries import Canary
from benchmarks.study.cloze import find_blanks
from data_prep.shards import open_corpus
from data_prep.tokenizing.tokenizer import Tokenizer

_TEXTS_AT_ONCE = 16
_LOGITS_AT_ONCE = 2**26
"""A quarter of a GiB, and as much again for each copy."""


class TokenScores(NamedTuple):
    """Of one text's tokens but the first."""

    nll: NDArray[np.float32]
    is_first_choice: NDArray[np.bool_]


class Scorer:
    """A causal LM with changeable weights."""

    def __init__(self, config_folder: Path, *, dtype: torch.dtype) -> None:
        """`dtype`: of the training, to which an export rounds weights, too."""
        self._lm = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(config_folder), attn_implementation="sdpa", dtype=dtype
        ).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(config_folder)

    def load(self, weights: dict[str, Tensor]) -> None:
        self._lm.load_state_dict(weights)

    def write(self, folder: Path) -> None:
        """As a Hugging Face folder, with the tokenizer."""
        self._lm.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)

    @torch.no_grad()
    def score(self, texts: Sequence[NDArray[Any]]) -> list[TokenScores]:
        """Each text alone, from its first token on."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        scored: dict[int, TokenScores] = {}
        longest = max((len(text) for text in texts), default=1)
        at_once = _LOGITS_AT_ONCE // (longest * self._lm.config.vocab_size)
        at_once = min(max(at_once, 1), _TEXTS_AT_ONCE)
        for begin in range(0, len(order), at_once):
            chosen = order[begin : begin + at_once]
            ids_BT = torch.zeros(len(chosen), max(len(texts[i]) for i in chosen), dtype=torch.long)
            for row, i in enumerate(chosen):
                ids_BT[row, : len(texts[i])] = torch.from_numpy(texts[i].astype(np.int64))
            # padding follows the text, where a causal model does not see it
            logits_BTV = self._lm(input_ids=ids_BT, use_cache=False).logits[:, :-1].float()
            targets_BT = ids_BT[:, 1:]
            nll_BT = cross_entropy(logits_BTV.mT, targets_BT, reduction="none").numpy()
            right_BT = (logits_BTV.argmax(-1) == targets_BT).numpy()
            for row, i in enumerate(chosen):
                last = len(texts[i]) - 1
                scored[i] = TokenScores(nll_BT[row, :last], right_BT[row, :last])
        return [scored[i] for i in range(len(texts))]


def heldout_pieces(
    corpus: Path, *, sequence_tokens: int, limit: int | None = None
) -> list[NDArray[Any]]:
    """Documents of the validation split, cut as the pack cuts them; single tokens are skipped.

    Args:
        limit: of samples; None takes all.
    """
    opened = open_corpus(corpus)
    pack = opened.open_pack(sequence_tokens)
    num_samples = min(pack.num_samples("val"), limit or pack.num_samples("val"))
    return [
        np.array(opened.document(document, "val")[start : start + length])
        for sample in range(num_samples)
        for document, start, length in pack.pieces(sample, "val").tolist()
        if length > 1
    ]


def mean_nll(scores: Sequence[TokenScores]) -> float:
    return float(np.concatenate([score.nll for score in scores]).mean(dtype=np.float64))


def completed_share(
    pieces: Sequence[NDArray[Any]],
    scores: Sequence[TokenScores],
    *,
    token_texts: Sequence[str],
    domain: str,
) -> dict[str, float]:
    """By kind of word, the share that greedy decoding completes, given the true text before it."""
    counts: dict[str, list[int]] = {}
    for ids, score in zip(pieces, scores, strict=True):
        for blank in find_blanks([token_texts[i] for i in ids.tolist()], domain=domain):
            count = counts.setdefault(blank.kind, [0, 0])
            count[0] += bool(score.is_first_choice[blank.first - 1 : blank.last - 1].all())
            count[1] += 1
    return {kind: right / total for kind, (right, total) in sorted(counts.items())}


def memorised(scorer: Scorer, canaries: Sequence[Canary], tokenizer: Tokenizer) -> dict[str, float]:
    """How well the secrets of canaries are memorised.

    `exact` is the share that greedy decoding writes out after the prefix. `exposure_bits` is the
    mean of log2(rivals + 1) - log2(rank of the secret among its rivals, by likelihood): about 1.4
    for one that was never seen, log2(rivals + 1) for one that beats them all (Carlini et al.: The
    Secret Sharer, 2019).
    """
    num_exact, exposure = 0, 0.0
    for canary in canaries:
        num_prefix = len(tokenizer.encode([canary.prefix])[0])
        lines = [canary.prefix + secret for secret in (canary.secret, *canary.rivals)]
        scores = scorer.score([np.asarray(ids) for ids in tokenizer.encode(lines)])
        losses = [float(score.nll[num_prefix - 1 :].sum(dtype=np.float64)) for score in scores]
        num_exact += bool(scores[0].is_first_choice[num_prefix - 1 :].all())
        rank = 1 + sum(loss < losses[0] for loss in losses[1:])
        exposure += math.log2(len(lines)) - math.log2(rank)
    return {
        "exact": num_exact / len(canaries),
        "exposure_bits": exposure / len(canaries),
    }
