"""The loop of docs/method.md and the trainer of docs/trainer.ipynb train as they stand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.distributed import run_ranks
from tests.docs.markdown import REPO_ROOT, code_blocks

(PLAIN_LOOP,) = code_blocks(REPO_ROOT / "docs" / "method.md", "python")
NOTEBOOK = json.loads((REPO_ROOT / "docs" / "trainer.ipynb").read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
WITH_TRAINER = "\n".join("".join(cell["source"]) for cell in CELLS)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of such small products wait for each other, and long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run_example(example: str) -> dict[str, Any]:
    """The names that the example leaves behind."""
    names: dict[str, Any] = {}
    exec(compile(example, "example", "exec"), names)
    return names


def test_the_example_loop_runs_and_learns_its_data() -> None:
    imported = [line for line in PLAIN_LOOP.splitlines() if line.startswith(("import", "from"))]
    assert all(line.startswith(("import torch", "from training.entrodrop.")) for line in imported)
    after = run_example(PLAIN_LOOP)
    before = run_example(PLAIN_LOOP.replace("8, 20\n", "8, 1\n"))
    assert after["loss"].item() < 0.8 * before["loss"].item()
    assert after["dropped"].any()


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    return run_example(WITH_TRAINER)


@pytest.fixture
def trainer(trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's trainer at the end of its curriculum, where every low token drops."""
    trainer = trained["trainer"]
    monkeypatch.setattr(trainer, "max_rate", 1.0)
    monkeypatch.setattr(trainer.state, "global_step", trainer.state.max_steps)
    trainer.model.train()
    return trainer


def half_known_batch(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two samples that the model has learnt and two that it has not; the first labels ignored."""
    ids = torch.cat([tokens[:2], tokens[2:4].flip(1)])
    labels = ids.clone()
    labels[:, :5] = -100
    return {"input_ids": ids, "labels": labels, "sample": torch.arange(4)}


def zeroed_inputs(trainer: Any, model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """Bool, which tokens' embeddings a training step's forward pass sees as zeros."""
    seen = []
    hook = trainer.model.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("inputs_embeds")), with_kwargs=True
    )
    trainer.compute_loss(model, batch)
    hook.remove()
    _, embeds = seen  # the probe's pass comes first
    return (embeds == 0).all(-1)


def test_the_notebook_holds_no_output_of_a_run() -> None:
    assert len(CELLS) > 4
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CELLS)


def test_the_example_trainer_learns_its_data(trained: dict[str, Any]) -> None:
    tokens = trained["tokens"]
    with torch.no_grad():
        loss = trained["trainer"].model.eval()(input_ids=tokens, labels=tokens).loss
    assert loss < 0.5 * math.log(trained["config"].vocab_size)  # that of an untrained model


def test_the_example_trainer_zeroes_the_asked_share_of_lowest_entropy(trainer, trained) -> None:
    batch = half_known_batch(trained["tokens"])
    zeroed = zeroed_inputs(trainer, trainer.model, batch)
    with torch.no_grad():
        log_probs = trainer.model(input_ids=batch["input_ids"]).logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)[:, :-1]
    is_target = batch["labels"][:, 1:] != -100
    assert not zeroed[:, 0].any()
    assert not zeroed[:, 1:][~is_target].any()
    assert zeroed.sum() == math.ceil(0.5 * is_target.sum())
    dropped, kept = entropy[zeroed[:, 1:]], entropy[is_target & ~zeroed[:, 1:]]
    assert dropped.max() <= kept.min() + 1e-5


@pytest.mark.parametrize("nothing_drops", [{"max_rate": 0.0}, {"quantile": 0.0}])
def test_the_example_trainer_gives_the_models_own_loss_when_nothing_drops(
    trainer, trained, monkeypatch, nothing_drops
) -> None:
    for name, value in nothing_drops.items():
        monkeypatch.setattr(trainer, name, value)
    batch = half_known_batch(trained["tokens"])
    expected = trainer.model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), expected)
    # of two accumulated batches of as many targets
    num_targets = (batch["labels"][:, 1:] != -100).sum()
    half = trainer.compute_loss(trainer.model, batch, num_items_in_batch=2 * num_targets)
    torch.testing.assert_close(half, expected / 2)


def test_the_example_trainer_evaluates_without_drops(trainer, trained) -> None:
    tokens = trained["tokens"]
    found = trainer.evaluate(trained["data"])["eval_loss"]
    with torch.no_grad():
        expected = trainer.model(input_ids=tokens, labels=tokens).loss
    assert found == pytest.approx(expected.item(), rel=1e-5)


def numbers_zeroed_on_rank() -> tuple[int, int]:
    """Of a batch that is known on rank 0 and unknown on the others: tokens zeroed, and targets."""
    names = run_example(WITH_TRAINER)
    trainer = names["trainer"]
    trainer.max_rate, trainer.state.global_step = 1.0, trainer.state.max_steps
    rank = torch.distributed.get_rank()
    ids = names["tokens"][:4] if rank == 0 else names["tokens"][:4].flip(1)
    batch = {"input_ids": ids, "labels": ids, "sample": 4 * rank + torch.arange(4)}
    trainer.model.train()
    zeroed = zeroed_inputs(trainer, trainer.model_wrapped, batch)
    return int(zeroed.sum()), ids[:, 1:].numel()


@pytest.mark.slow
def test_the_example_trainer_takes_one_quantile_over_all_ranks() -> None:
    known, unknown = run_ranks(numbers_zeroed_on_rank, world_size=2)
    assert known[0] + unknown[0] == math.ceil(0.5 * (known[1] + unknown[1]))
    assert known[0] > unknown[0]
