"""Checkpoints of images and text: their text model is trained, the rest stays bit by bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.distributed import run_ranks
from tests.grids import WHOLE
from tests.training.refusals import refused
from tests.training.short_runs import short_recipe, train_on_rank
from training.checkpoints.export import export_run
from training.checkpoints.other_parts import restore_parts
from training.config.sections import Model
from training.model.causal_lm import resolve_model_config
from training.model.multimodal import is_part, load_text_model, tell_of_other_parts, text_name
from training.model.weights import find_other_weights

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
LINEAR = {f"linear_num_{part}_heads": 2 for part in ("key", "value")}
LINEAR |= {f"linear_{part}_head_dim": 8 for part in ("key", "value")}
TOKENS = {f"{name}_token_index": 500 + n for n, name in enumerate(("image", "boi", "eoi"))}
MODELS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": TEXT | {"model_type": "gemma3_text"},
        "vision_config": VISION | {"model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
        **TOKENS,
    },
    "qwen3_5": {
        "text_config": TEXT
        | LINEAR
        | {"model_type": "qwen3_5_text", "layer_types": ["linear_attention", "full_attention"]},
        "vision_config": {
            **{"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16},
            **{"out_hidden_size": 32, "num_position_embeddings": 16},
        },
        **{"image_token_id": 500, "video_token_id": 501},
        **{"vision_start_token_id": 502, "vision_end_token_id": 503},
    },
    "mistral3": {
        "text_config": TEXT | {"model_type": "mistral"},
        "vision_config": VISION | {"model_type": "pixtral", "head_dim": 8},
        "image_token_index": 500,
    },
}
EXPERTS = {"model_type": "qwen3_5_moe_text", "num_experts": 4, "num_experts_per_tok": 2}
EXPERTS |= {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
MODELS["qwen3_5_moe"] = MODELS["qwen3_5"] | {
    "text_config": MODELS["qwen3_5"]["text_config"] | EXPERTS
}


@pytest.fixture(scope="module", params=MODELS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it lies on the hub: in two files with an index, with a processor and a licence."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **MODELS[request.param])
    lm = AutoModelForImageTextToText.from_config(config)
    lm.save_pretrained(folder, max_shard_size="60KB")
    (folder / "preprocessor_config.json").write_text("{}\n")
    (folder / "LICENSE.txt").write_text("of the base\n")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# Base\n")
    return folder


def test_the_text_model_is_taken_out_of_the_whole(base):
    whole = AutoModelForImageTextToText.from_pretrained(base)
    text = load_text_model(base, trust_remote_code=False)
    assert type(text).__name__.endswith("ForCausalLM")
    expected = {text_name(name): weight for name, weight in whole.state_dict().items()}
    for name, weight in text.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    model = Model(pretrained=str(base))
    config = resolve_model_config(model, vocab_size=512, dtype=torch.float32)
    assert is_part(model) and config.get_text_config() is config
    assert find_other_weights(model, config) is None


def test_trained_weights_go_back_into_it_and_the_rest_stays(base, tmp_path):
    text = load_text_model(base, trust_remote_code=False)
    for weight in text.parameters():
        weight.data += 1
    text.save_pretrained(tmp_path)
    restore_parts(tmp_path, base)
    names = {path.name for path in base.glob("*model*.safetensors*")} | {"preprocessor_config.json"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    for path in base.glob("*.safetensors"):
        found = load_file(tmp_path / path.name)
        for name, weight in load_file(path).items():
            moved = 1.0 if text_name(name) != name or name == "lm_head.weight" else 0.0
            assert torch.equal(found[name], weight + moved), name


def test_weights_without_a_place_in_it_are_refused(base, tmp_path):
    text = load_text_model(base, trust_remote_code=False)
    text.model.layers.append(copy.deepcopy(text.model.layers[0]))
    text.save_pretrained(tmp_path)
    assert "has no place for" in refused(lambda: restore_parts(tmp_path, base))


def test_a_run_on_one_exports_the_same_class(base, tmp_path, small_corpus, capsys):
    if not (WHOLE or base.name.startswith("gemma3")):
        return
    changes: dict[str, Any] = {
        "model": {"pretrained": str(base)},
        "train__max_steps": 2,
        "train__sequence_parallel_size": 1,
        "evaluation": {"every_steps": None},
    }
    recipe = short_recipe(small_corpus, tmp_path / "run", **changes)
    run_ranks(train_on_rank, recipe, world_size=1)
    tell_of_other_parts(recipe.model)
    assert "its text model is trained, the rest stays as it is" in capsys.readouterr().err
    exported = export_run(tmp_path / "run")
    assert (exported / "LICENSE.txt").read_text() == "of the base\n"
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: transformers\n---\n# run\n")
    assert f"| began from | {base.name} |\n| licence of the base | apache-2.0 |" in card
    before = AutoModelForImageTextToText.from_pretrained(base)
    after = AutoModelForImageTextToText.from_pretrained(exported)
    assert type(after) is type(before) is getattr(transformers, before.config.architectures[0])
    expected = before.state_dict()
    for name, weight in after.state_dict().items():
        is_text = text_name(name) != name or name == "lm_head.weight"
        assert torch.equal(weight, expected[name]) is not is_text, name
