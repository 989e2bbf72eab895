"""Plain transformers, one text at a time: what the numbers of tasks are compared with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

NUM_NEW_TOKENS = 6


class Plain:
    """The reference: one text at a time, all logits, nothing of the harness."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.lm = AutoModelForCausalLM.from_pretrained(folder).eval()

    @torch.no_grad()
    def log_probs(self, ids: list[int]) -> Tensor:
        return self.lm(torch.tensor([ids])).logits[0].double().log_softmax(-1)

    def score(self, context: str, continuation: str) -> tuple[float, bool]:
        """Log-likelihood, and whether each token is the likeliest one.

        As the harness has it, the continuation is what the whole text has behind as many tokens as
        the context alone has, also where a token of the whole spans the seam.
        """
        before = self.tokenizer.encode(context)
        start = len(before)
        ids = before + self.tokenizer.encode(context + continuation)[start:]
        rows, targets = self.log_probs(ids)[start - 1 : -1], torch.tensor(ids[start:])
        greedy = bool((rows.argmax(-1) == targets).all())
        return float(rows.gather(1, targets[:, None]).sum()), greedy

    def continued(self, context: str) -> str:
        """Greedily, to the first line break or the end of the text."""
        ids = self.tokenizer.encode(context)
        new: list[int] = []
        while len(new) < NUM_NEW_TOKENS:
            new.append(int(self.log_probs(ids + new)[-1].argmax()))
            if new[-1] == self.tokenizer.eos_token_id:
                break
        return self.tokenizer.decode(new, skip_special_tokens=True).split("\n")[0]

    def score_whole(self, text: str) -> float:
        """Of all tokens of a text, the first one after EOS."""
        ids = [self.tokenizer.eos_token_id, *self.tokenizer.encode(text)]
        rows = self.log_probs(ids)[:-1]
        return float(rows.gather(1, torch.tensor(ids[1:])[:, None]).sum())
