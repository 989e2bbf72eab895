from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizers import Tokenizer

from data_prep.shards import open_corpus
from tests.distributed import run_ranks
from tests.training.short_runs import SEQUENCE_TOKENS, metrics, short_recipe, train_on_rank


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "dropout": {"where": "loss", "quantile": 0.5, "max_rate": 0.6},
            "entropy": {"threshold": "lagged"},
        },
    ],
    ids=["input", "lagged loss"],
)
def test_pictures_at_evaluations_agree_with_what_the_steps_say(
    small_corpus: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    recipe = short_recipe(small_corpus, tmp_path / "run", **changes)
    recipe = replace(recipe, train=replace(recipe.train, max_steps=6))
    run_ranks(train_on_rank, recipe, world_size=2)
    events = EventAccumulator(
        str(tmp_path / "run" / "tensorboard"), size_guidance={"tensors": 0, "histograms": 0}
    )
    events.Reload()
    steps = {row["step"]: row for row in metrics(tmp_path / "run", "step")}
    everything, dropped = (
        {event.step: event.histogram_value.num for event in events.Histograms(tag)}
        for tag in ("entropy/tokens_all_nats", "entropy/tokens_dropped_nats")
    )
    assert list(everything) == [3, 6]
    for step, num_targets in everything.items():
        realised = dropped[step] / num_targets
        assert realised == pytest.approx(steps[step]["drop_rate_realised"], abs=1e-9)

    corpus = open_corpus(small_corpus)
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_dir / "tokenizer.json"))
    for shown in events.Tensors("dropout/sample/text_summary"):
        head, _, code = shown.tensor_proto.string_val[0].decode().partition("\n\n")
        sample = corpus.open_pack(SEQUENCE_TOKENS).sample(int(head.split()[1].rstrip(":")))
        ids = sample.ids[: SEQUENCE_TOKENS // 2].tolist()  # the shard of rank 0
        text = "\n".join(line.removeprefix("    ") for line in code.splitlines())
        told = int(head.split(": ")[1].split()[0])
        assert (told == 0) == ("⟦" not in text)
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        # characters that a mark cuts apart come out as replacement characters
        assert "�" in text or text.replace("⟦", "").replace("⟧", "") == decoded.rstrip("\n")
