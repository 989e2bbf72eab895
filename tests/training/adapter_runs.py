"""Runs with an adapter beside a small base, and the same steps by plain peft and torch."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from data_prep.shards import PackIndex, open_corpus
from tests.distributed import run_ranks
from tests.training.short_runs import SEQUENCE_TOKENS, metrics, short_recipe, train_on_rank
from training.config.recipe import Recipe
from training.data.sample_order import SampleOrder
from training.run.plan import choose_mixture

LORA: dict[str, Any] = {"kind": "lora", "rank": 4, "alpha": 8}
DORA: dict[str, Any] = {**LORA, "kind": "dora", "targets": ["q_proj", "o_proj", "down_proj"]}
SAVED: dict[str, Any] = {"checkpoint": {"every_steps": 3}, "ema": {"half_life_steps": 2}}
TAUGHT: dict[str, Any] = {"teacher": {"kind": "base", "weight": 0.5}}


def adapter_recipe(
    corpus: Path, base: Path, run_dir: Path, adapter: dict[str, Any], **changes: Any
) -> Recipe:
    """Six steps beside the weights of `base`, without regulariser."""
    return short_recipe(
        corpus,
        run_dir,
        **{
            "model": {"pretrained": str(base)},
            "adapter": adapter,
            "regulariser": "none",
            "train__max_steps": 6,
            "train__gradient_clipping": 0.1,
            "optimizer": {"lr": 1e-2, "weight_decay": 0.1},
            "schedule": {"kind": "constant", "warmup_frac": 0.0},
            **changes,
        },
    )


def plain_steps(recipe: Recipe) -> tuple[list[dict[str, float]], Any]:
    """Losses and gradient norms by transformers, peft and torch alone, document by document.

    Returns:
        A row for each step, and the model that they have trained.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    adapter = recipe.adapter
    assert adapter is not None
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        target_modules=adapter.targets if adapter.targets == "all-linear" else [*adapter.targets],
        use_dora=adapter.kind == "dora",
    )
    base = AutoModelForCausalLM.from_pretrained(recipe.model.pretrained, dtype=torch.float32)
    torch.manual_seed(recipe.seed)
    lm = get_peft_model(base, config).train()
    trained = [weight for weight in lm.parameters() if weight.requires_grad]
    settings = recipe.optimizer
    optimizer = torch.optim.AdamW(
        [
            {"params": [w for w in trained if w.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [w for w in trained if w.ndim < 2], "weight_decay": 0.0},
        ],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
    )
    rows = []
    pack = open_corpus(recipe.data.corpus).open_pack(SEQUENCE_TOKENS)
    for samples in samples_of_steps(recipe, pack):
        documents = [document for sample in samples for document in documents_of(pack, sample)]
        num_targets = sum(int((targets != -100).sum()) for _, targets in documents)
        share = recipe.teacher.weight if recipe.teacher else 0.0
        loss = objective = torch.zeros(())
        for ids, targets in documents:
            logits = lm(input_ids=ids[None]).logits[0]
            nll = F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
            loss, objective = loss + nll, objective + (1 - share) * nll
            if share:
                with lm.disable_adapter(), torch.no_grad():
                    taught = lm(input_ids=ids[None]).logits[0].softmax(-1)
                soft = -(taught * logits.log_softmax(-1)).sum(-1)
                objective = objective + share * soft[targets != -100].sum()
        loss, objective = loss.detach() / num_targets, objective / num_targets
        objective.backward()
        limit = recipe.train.gradient_clipping
        norm = torch.nn.utils.clip_grad_norm_(trained, limit or torch.inf)
        optimizer.step()
        optimizer.zero_grad()
        rows.append({"loss": float(loss), "objective": objective.item(), "grad_norm": float(norm)})
    return rows, lm


def samples_of_steps(recipe: Recipe, pack: PackIndex) -> list[list[int]]:
    """Numbers of the samples of each step, as a run takes them."""
    order = SampleOrder(choose_mixture(recipe, pack, None), seed=recipe.seed)
    per_step = recipe.train.global_batch_tokens // SEQUENCE_TOKENS
    num = per_step * (recipe.train.max_steps or 0)
    samples = [order.sample_at(place)[0] for place in range(num)]
    return [samples[first : first + per_step] for first in range(0, num, per_step)]


def documents_of(pack: PackIndex, number: int) -> list[tuple[Tensor, Tensor]]:
    """Tokens and targets of each document of a sample: the next token, where it is in the loss."""
    sample = pack.sample(number)
    starts = torch.from_numpy(sample.position_ids[: sample.num_tokens] == 0).nonzero()[:, 0]
    documents = []
    for start, end in pairwise([*starts.tolist(), sample.num_tokens]):
        ids = torch.from_numpy(sample.ids[start:end]).long()
        in_loss = torch.from_numpy(sample.in_loss[start + 1 : end])
        targets = F.pad(torch.where(in_loss, ids[1:], -100), (0, 1), value=-100)
        documents.append((ids, targets))
    return documents


def trained(recipe: Recipe, *, world_size: int = 2) -> list[dict[str, Any]]:
    run_ranks(train_on_rank, recipe, world_size=world_size)
    return metrics(Path(recipe.run_dir), "step")
