"""The model for lm-evaluation-harness: whole on each rank, for a share of the documents."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import AutoTokenizer

from training.model.multimodal import load_text_model


class WholeModel(HFLM):
    """The harness' own model with ranks that follow the launcher.

    HFLM takes the local rank for the rank, and on a CPU each process for the only one. Here no rank
    waits for another before the results are collected: all hold all weights, so nothing has to be
    padded to equal numbers of passes.
    """

    def __init__(self, folder: Path, *, device: torch.device, batch_size: int) -> None:
        """Load the weights in the dtype that they were written in.

        Raises:
            ValueError: for a folder that plain transformers cannot load, or a tokenizer without a
                token that a text can begin with.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model: Any = load_text_model(folder, dtype="auto", trust_remote_code=False)
        except Exception as error:  # transformers raises errors of many kinds
            message = " ".join(str(error).split())
            raise ValueError(f"{folder}: cannot be loaded: {message}") from None
        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise ValueError(
                f"{folder}: the tokenizer has neither a BOS nor an EOS; the first token of a "
                "text is predicted from one of them"
            )
        logger = logging.getLogger("lm_eval")
        level = logger.level
        logger.setLevel(logging.ERROR)  # it warns of ranks, which are set below
        super().__init__(
            pretrained=model.to(device),
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size,
        )
        logger.setLevel(level)
        self._rank = dist.get_rank()
        self._world_size = dist.get_world_size()
        self.num_cut = 0
        """Requests of this rank whose beginning the harness has dropped: they were too long."""

    def _loglikelihood_tokens(self, requests: Any, **options: Any) -> Any:
        longest = self.max_length + 1  # the last token is no input
        self.num_cut += sum(len(context) + len(rest) > longest for _, context, rest in requests)
        return super()._loglikelihood_tokens(requests, **options)

    def tok_batch_encode(
        self, strings: list[str], *, left_truncate_len: int | None = None, **options: Any
    ) -> Any:
        if left_truncate_len is not None:
            longest = left_truncate_len
            self.num_cut += sum(len(self.tok_encode(string)) > longest for string in strings)
        return super().tok_batch_encode(strings, left_truncate_len=left_truncate_len, **options)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """This rank's numbers for everyone's: the harness pads ranks by them."""
        return tensor.expand(self._world_size)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Everyone's objects on rank `dst`."""
        gathered: list[Any] | None = [None] * self._world_size if self._rank == dst else None
        dist.gather_object(obj, gathered, dst=dst)
        return gathered

    def barrier(self) -> None:
        """None: ranks without a request of some kind never reach it."""
