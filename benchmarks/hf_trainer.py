"""Times steps of the Hugging Face Trainer on the DeepSpeed JSON, model and data of a recipe.

What differs from our engine: norms decay too (DeepSpeed makes the optimizer, from one group), and
all logits are held at once. transformers makes the mask of documents itself, from the position ids.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from benchmarks.step_meters import Took
from training.config.recipe import Recipe
from training.data.stream import SampleStream, next_token_targets
from training.model.causal_lm import resolve_model_config
from training.model.ds_config import join_ds_config
from training.ranks.dist import Layout


def trainer_steps(
    recipe: Recipe,
    stream: SampleStream,
    num_steps: int,
    *,
    layout: Layout,
    between: Callable[[int], None],
) -> tuple[list[Took], float]:
    """On one rank: what each step took, and the first step's mean loss.

    Args:
        between: called after each step with its number, and not counted.
    """
    ds_config = join_ds_config(
        recipe, num_micro_steps=stream.num_micro_steps, has_gpu=layout.device.type == "cuda"
    )
    clock = _StepClock(between)
    with tempfile.TemporaryDirectory() as folder:
        # made before the model: transformers partitions weights while it initialises them
        arguments = _arguments(recipe, ds_config, folder, num_steps)
        trainer = _InOrder(
            model=_model(recipe),
            args=arguments,
            train_dataset=_Samples(stream, num_steps),
            callbacks=[clock],
        )
        trainer.train()
    # the Trainer scales each by ranks / targets of the step
    first_loss = torch.stack(trainer.losses[: stream.num_micro_steps]).sum() / layout.world_size
    dist.all_reduce(first_loss)
    return clock.steps, float(first_loss)


def _arguments(
    recipe: Recipe, ds_config: dict[str, Any], folder: str, num_steps: int
) -> TrainingArguments:
    opt = recipe.optimizer
    return TrainingArguments(
        output_dir=folder,
        deepspeed=ds_config,
        per_device_train_batch_size=recipe.train.micro_batch_samples,
        gradient_accumulation_steps=ds_config["gradient_accumulation_steps"],
        max_steps=num_steps,
        learning_rate=opt.lr,
        weight_decay=opt.weight_decay,
        adam_beta1=opt.beta1,
        adam_beta2=opt.beta2,
        adam_epsilon=opt.eps,
        max_grad_norm=recipe.train.gradient_clipping or 0.0,
        lr_scheduler_type="constant",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
    )


def _model(recipe: Recipe) -> Any:
    vocab_size = (recipe.model.config or {})["vocab_size"]
    config = resolve_model_config(recipe.model, vocab_size=vocab_size, dtype=torch.float32)
    config.use_cache = False  # with a cache transformers would not look for documents
    torch.manual_seed(recipe.seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    if recipe.model.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


class _Samples(torch.utils.data.Dataset):
    """The stream's samples in its order, as the Trainer wants them."""

    def __init__(self, stream: SampleStream, num_steps: int) -> None:
        self._stream = stream
        self._num = num_steps * stream.samples_per_step

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        order = self._stream.order
        sample_id = order.sample_at(number)[0] if order else number
        sample = self._stream.pack.sample(sample_id)
        # transformers shifts by one itself: a label is at its own token
        labels = torch.full((len(sample.ids),), -100)
        labels[1:] = torch.from_numpy(next_token_targets(sample))[:-1]
        return {
            "input_ids": torch.from_numpy(sample.ids),
            "position_ids": torch.from_numpy(sample.position_ids),
            "labels": labels,
        }


class _InOrder(Trainer):
    """Without the shuffle, so that both train on the same samples; keeps the losses."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.losses: list[torch.Tensor] = []

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(range(len(self.train_dataset)))  # type: ignore[arg-type]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.losses.append(super().training_step(*args, **kwargs))
        return self.losses[-1]


class _StepClock(TrainerCallback):
    """From the end of a step to the end of the next: its data, forward, backward and update."""

    def __init__(self, between: Callable[[int], None]) -> None:
        self.steps: list[Took] = []
        self._between = between
        self._ended = Took.now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.steps.append(Took.now().since(self._ended))
        self._between(len(self.steps) - 1)
        dist.barrier()
        self._ended = Took.now()
