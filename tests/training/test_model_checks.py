"""Models whose numbers would silently differ are refused, those that only look so are not."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from training.model.checks import check_window, refuse_unsupported, warn_of_positions


def test_a_window_that_samples_exceed_is_refused() -> None:
    config = AutoConfig.for_model("mistral", sliding_window=32)
    check_window(config, sequence_tokens=32)
    with pytest.raises(ValueError, match=r"sliding_window 32 .* up to 32"):
        check_window(config, sequence_tokens=64)
    check_window(AutoConfig.for_model("mistral", sliding_window=None), sequence_tokens=64)
    unused = AutoConfig.for_model("qwen3", sliding_window=32, use_sliding_window=False)
    check_window(unused, sequence_tokens=64)


def test_samples_beyond_the_positions_that_the_model_knows_are_told(capsys) -> None:
    config = AutoConfig.for_model("qwen3", max_position_embeddings=64)
    warn_of_positions(config, sequence_tokens=64)
    assert capsys.readouterr().err == ""
    warn_of_positions(config, sequence_tokens=65)
    (line,) = capsys.readouterr().err.splitlines()
    assert "sequence_tokens 65 exceeds the model's max_position_embeddings 64" in line


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_rope_that_depends_on_the_batch_is_refused(rope_type: str) -> None:
    config = AutoConfig.for_model("llama")
    refuse_unsupported(config)
    config.rope_parameters = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(ValueError, match=f"rope_type '{rope_type}' is not supported"):
        refuse_unsupported(config)
