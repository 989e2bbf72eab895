"""Preflight names each planted fault of the numbers and of a pretrained model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.grids import WHOLE
from tests.launch.preflights import failure, findings, only, preflight
from tests.launch.shared_runs import write_recipe
from tests.training.short_runs import short_recipe

NUMERICS = ("losses", "weights", "documents", "gradients")


@pytest.fixture
def recipe(small_corpus: Path, tmp_path: Path) -> str:
    """Two ranks share each sequence; saved every fourth step."""
    made = short_recipe(small_corpus, tmp_path / "run", checkpoint={"every_steps": 4})
    return str(write_recipe(made, tmp_path / "recipe.yaml"))


def leaking_attention() -> None:
    """What transformers' sdpa does under Ulysses: causal over the whole row."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    import training.model.attention

    def sdpa(module: Any, query: Any, key: Any, value: Any, _: Any, **keywords: Any) -> Any:
        return sdpa_attention_forward(
            module, query, key, value, None, scaling=keywords.get("scaling"), is_causal=True
        )

    training.model.attention.document_attention = sdpa


def gradients_times_sp() -> None:
    from training.model.engine import Engine

    plain = Engine.backward_and_step

    def scaled(self: Any, loss_sum: Any, *, divisor: float, lr: float) -> Any:
        return plain(self, loss_sum * self.layout.sp_size, divisor=divisor, lr=lr)

    Engine.backward_and_step = scaled


def gradients_times_sp_in_bf16() -> None:
    import torch

    from training.model.engine import Engine

    plain = Engine.backward_and_step

    def scaled(self: Any, loss_sum: Any, *, divisor: float, lr: float) -> Any:
        factor = self.layout.sp_size if self.model.lm.dtype is torch.bfloat16 else 1
        return plain(self, loss_sum * factor, divisor=divisor, lr=lr)

    Engine.backward_and_step = scaled


def weights_without_init() -> None:
    """`from_config` in `deepspeed.zero.Init`, without transformers knowing of it."""
    import deepspeed
    from transformers import AutoModelForCausalLM

    from launch.preflight import weights

    def build(_: Any, config: Any, *, ds_config: Any, seed: int) -> Any:
        with deepspeed.zero.Init(config_dict_or_path=dict(ds_config)):
            return AutoModelForCausalLM.from_config(config)

    weights.build_model = build


@pytest.mark.parametrize("sp_size", [1, 2])
def test_attention_that_leaks_between_documents_is_found(recipe: str, sp_size: int) -> None:
    arguments = [recipe, f"train.sequence_parallel_size={sp_size}", *only("documents")]
    found = failure(preflight(*arguments, plant=leaking_attention), "documents")
    assert found["found"].startswith("documents leak")


def test_gradients_that_sequence_shards_scale_are_found(recipe: str) -> None:
    found = failure(preflight(recipe, *only("gradients"), plant=gradients_times_sp), "gradients")
    assert "gradients are 2.0000 times those of one process" in found["found"]
    assert found["ranks"] == [0, 1]


@pytest.mark.parametrize("deepspeed", ["zero1", *(("zero3",) if WHOLE else ())])
def test_gradients_that_are_wrong_in_the_dtype_that_trains_are_found(
    recipe: str, deepspeed: str
) -> None:
    arguments = [recipe, f"deepspeed={deepspeed}", *only("gradients")]
    found = failure(preflight(*arguments, plant=gradients_times_sp_in_bf16), "gradients")
    assert re.search(r"in bf16 gradients are (2\.00|1\.99)\d\d times those", found["found"])
    assert found["ranks"] == [0, 1]


def test_weights_that_were_never_initialised_are_found(recipe: str) -> None:
    found = failure(preflight(recipe, *only("weights"), plant=weights_without_init), "weights")
    assert "embed_tokens.weight has mean" in found["found"]


def test_a_model_with_other_losses_than_in_transformers_is_found(recipe: str) -> None:
    done = preflight(recipe, "model.config.model_type=doge", *only("losses"))
    found = failure(done, "losses")
    assert "model: doge is not supported" in found["found"]
    assert found["ranks"] == [0, 1]


@pytest.fixture(scope="module")
def pretrained(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model on disk whose tokenizer is the corpus's."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("pretrained") / "model"
    config = AutoConfig.for_model(
        "llama", vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, eos_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    shutil.copy(small_corpus / "tokenizer" / "tokenizer.json", folder)
    return folder


def of_pretrained(folder: Path) -> list[str]:
    return [f"model.pretrained={folder}", "model.config=null"]


def test_a_pretrained_model_passes_and_its_loading_is_compared_bit_by_bit(recipe, pretrained):
    names = ("model", "tokenizer", "weights", "gradients")
    done = preflight(recipe, *of_pretrained(pretrained), *only(*names))
    assert done["code"] == 0, done
    assert "1 file of weights complete" in findings(done, "model")[0]["found"]
    assert findings(done, "tokenizer")[0]["verdict"] in ("pass", "warn")
    assert "loaded bit by bit" in findings(done, "weights")[0]["found"]


def test_a_model_with_another_tokenizer_or_half_a_file_is_refused(recipe, pretrained, tmp_path):
    other = shutil.copytree(pretrained, tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    one, two = (token for token, number in vocab.items() if number in (300, 301))
    vocab[one], vocab[two] = vocab[two], vocab[one]
    (other / "tokenizer.json").write_text(json.dumps(content))
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = preflight(recipe, *of_pretrained(other), *only("model", "tokenizer"))
    assert done["code"] == 1
    assert "id 300 is" in findings(done, "tokenizer")[0]["found"]
    assert "copy the model again" in findings(done, "model")[0]["found"]
