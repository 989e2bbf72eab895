"""Recipes that are right and do not fit corpus, model, processes or DeepSpeed."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from tests.training.hub_server import hub
from tests.training.refusals import check, refused
from training.config.sections import Model
from training.model.causal_lm import resolve_model_config
from training.model.source import why_unread
from training.ranks.dist import init_layout

# --- recipes that are right and do not fit corpus, model or processes ---

EXPERTS = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}

STARTS: list[tuple[dict[str, Any], int, str]] = [
    # batches, by number of processes
    ({"train__micro_batch_samples": 3}, 2, "Nearest that divide: 384 or 576"),
    ({"train__sequence_parallel_size": 1, "train__micro_batch_samples": 1}, 6, "384 or 768"),
    ({"train__micro_batch_samples": 16}, 2, "take 16 at once. Nearest that divide: 1024"),
    ({"train__epochs": 0.001}, 2, "but 0.001 epochs of data.corpus"),
    ({"train__global_batch_tokens": 6_400_000, "train__epochs": 2}, 2, "or more train.epochs"),
    # corpus
    ({"data__corpus": "absent"}, 2, "absent/manifest.json: not found; `python -m data_prep build`"),
    ({"data__corpus": "README.md"}, 2, "README.md/manifest.json: not found"),
    ({"data__sequence_tokens": 128, "train__global_batch_tokens": 1024}, 2, "--seq-len 128"),
    ({"data__mixture": {"notes": {"epochs": 1}}}, 2, "no domain 'notes' in this corpus; there are"),
    ({"data__mixture": {"main": {"epochs": 0}}}, 2, "data.mixture:"),
    ({"entropy__source": "reference"}, 2, "no scores 'reference'; there are: none"),
    ({"regulariser": "rho1"}, 2, "no scores 'reference'; there are: none"),
    # model
    ({"model": {"pretrained": "./absent"}}, 2, "model.pretrained: there is no folder ./absent"),
    ({"model": {"pretrained": "ds_configs/"}}, 2, "ds_configs has no config.json"),
    ({"model": {"pretrained": ""}}, 2, "model.pretrained: String should have at least 1 character"),
    ({"model__config__model_type": "qwen33"}, 2, "did you mean qwen3"),
    ({"model__config__model_type": 3}, 2, "'3' is unknown to transformers"),
    ({"model": {"config": {"model_type": "gpt2"}}}, 2, "gpt2 is not supported"),
    ({"model": {"config": {"model_type": "bert"}}}, 2, "bert is not supported"),
    ({"model": {"config": {"model_type": "t5"}}}, 2, "t5 is not supported"),
    ({"model": {"config": {"model_type": "whisper"}}}, 2, "whisper is not supported"),
    ({"model": {"config": {"model_type": "mamba"}}}, 2, "mamba is not supported"),
    (
        {"model": {"config": {"model_type": "mixtral"} | EXPERTS}, "regulariser": "mlp_dropout"},
        2,
        "mlp_dropout: no plain MLP is known in MixtralDecoderLayer (it has self_attn, mlp",
    ),
    ({"model__kernels": "liger"}, 2, "model.kernels: liger needs a GPU, and this is a run on CPUs"),
    ({"model__config__hidden_sise": 3}, 2, "did you mean hidden_size"),
    (
        {"model__config__hidden_size": "big"},
        2,
        "'hidden_size' expected int, got str (value: 'big')",
    ),
    ({"model__config__hidden_size": 0}, 2, "hidden_size is 0; expected a number of at least 1"),
    ({"model__config__num_hidden_layers": 0}, 2, "num_hidden_layers is 0; expected"),
    ({"model__config__head_dim": 0}, 2, "head_dim is 0; expected"),
    ({"model__config__head_dim": 7}, 2, "even rotary dimension, but got `head_dim`=7"),
    ({"model__config__intermediate_size": 0}, 2, "intermediate_size is 0; expected"),
    ({"model__config__num_key_value_heads": 3}, 2, "is not a multiple of num_key_value_heads 3"),
    ({"model__config__num_attention_heads": None}, 2, "'num_attention_heads' expected int"),
    ({"model__config__hidden_act": "gelu2"}, 2, "'gelu2' is unknown to transformers; did you"),
    ({"model__config__attention_dropout": 0.1}, 2, "attention_dropout must be 0"),
    ({"model__config__layer_types": ["chunked_attention"]}, 2, "KeyError: 'chunked_attention'"),
    ({"model__config__vocab_size": 100}, 2, "100 is smaller than the corpus's 512"),
    ({"model__config__vocab_size": 511}, 2, "511 is smaller than the corpus's 512"),
    ({"model__config__vocab_size": "many"}, 2, "'vocab_size' expected int, got str"),
    ({"train__sequence_parallel_size": 8}, 8, "8 does not fit 4 attention heads and 2 key-value"),
    ({"dropout__mask_token_id": 512}, 2, "the model's ids are 0 to 511"),
    # DeepSpeed
    ({"deepspeed": "absent.json"}, 2, "deepspeed: absent.json: No such file"),
    ({"deepspeed": "ds_configs"}, 2, "deepspeed: ds_configs: Is a directory"),
    ({"deepspeed": "README.md"}, 2, "deepspeed: README.md: Expecting value"),
]


@pytest.mark.parametrize(("changes", "num_processes", "told"), STARTS)
def test_a_recipe_that_does_not_fit_is_refused(small_corpus, changes, num_processes, told):
    assert told in refused(lambda: check(small_corpus, num_processes=num_processes, **changes))


def test_what_is_refused_above_is_refused_for_its_change_alone(small_corpus):
    assert check(small_corpus).plan.total_steps == 8


@pytest.mark.parametrize(("num_processes", "sp_size"), [(1, 2), (3, 2), (2, 4)])
def test_sequences_shared_by_more_than_there_are_is_refused(num_processes, sp_size):
    rank = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**rank, "WORLD_SIZE": str(num_processes)}.items():
            patch.setenv(name, value)
        message = refused(lambda: init_layout(sp_size=sp_size))
    assert f"does not divide the number of processes {num_processes}" in message
    assert f"launch a multiple of {sp_size}, or set it to one of [1" in message


ZERO = {"stage": 3}
DEEPSPEED: list[tuple[Any, str]] = [
    ([], "expected keys and values"),
    ({"zero_optimization": 3}, "zero_optimization: expected keys and values"),
    ({"zero_optimization": {"stage": 2}}, "stage is 2; allowed are 1 and 3"),
    ({"zero_optimization": {"stage": 1, "sub_group_size": 9}}, "sub_group_size needs stage 3"),
    (
        {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}},
        "offload_optimizer needs stage 3",
    ),
    (
        {"zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "bf16"}},
        "stage 1 adds gradients up in fp32",
    ),
    (
        {"zero_optimization": {"stage": 1}, "bf16": {"immediate_grad_update": False}},
        "bf16.immediate_grad_update: stage 1 needs true",
    ),
    ({"zero_optimization": {**ZERO, "reduce_scatter": False}}, "reduce_scatter must be true"),
    ({"zero_optimization": {**ZERO, "stage3_max_live": 1}}, "stage3_max_live: Extra inputs"),
    ({"zero_optimization": {**ZERO, "reduce_bucket_size": "big"}}, "bucket_size: Input should be"),
    ({"zero_optimization": {**ZERO, "offload_optimizer": "cpu"}}, "offload_optimizer: Input"),
    (
        {"zero_optimization": {**ZERO, "zero_hpz_partition_size": 3}},
        "zero_hpz_partition_size 3 does not divide the number of processes 2; it can be one of [1,",
    ),
    (
        {"zero_optimization": {**ZERO, "zero_hpz_partition_size": "2"}},
        "zero_hpz_partition_size: expected a whole number of at least 1 (is '2')",
    ),
    (
        {"zero_optimization": {**ZERO, "zero_hpz_partition_size": 0}},
        "zero_hpz_partition_size: expected a whole number of at least 1 (is 0)",
    ),
    (
        {
            "zero_optimization": ZERO
            | {"offload_optimizer": {"device": "cpu", "super_offload": True}}
        },
        "super_offload is not supported: DeepSpeed keeps Adam's moments in a process of its own",
    ),
    ({"zero_optimisation": ZERO}, "did you mean zero_optimization?"),
    (
        {"zero_optimization": ZERO, "bf61": {"enabled": True}},
        "bf61: unknown key, or not for this engine; did you mean bf16",
    ),
    ({"zero_optimization": ZERO, "comunication_data_type": "fp32"}, "mean communication_data_type"),
    (
        {"zero_optimization": ZERO, "torch_autocast": {"enabled": True}},
        "not for this engine; allow",
    ),
    ({"zero_optimization": ZERO, "gradient_predivide_factor": 2}, "gradient_predivide_factor: un"),
    ({"zero_optimization": ZERO, "bfloat16": {"enabled": True}}, "did you mean bf16?"),
    ({"zero_optimization": ZERO, "bf16": True}, "bf16: expected keys and values"),
    (
        {"zero_optimization": ZERO, "bf16": {"enabled": "yes"}},
        "expected true or false, found 'yes'",
    ),
    ({"zero_optimization": ZERO, "fp16": {"enabled": True}}, "fp16 is not supported"),
    ({"zero_optimization": ZERO, "bf16": {"enabled": "auto"}}, '"auto" is a value of the Hugging'),
    ({"zero_optimization": ZERO, "train_batch_size": 8}, "belongs to the recipe"),
    ({"zero_optimization": ZERO, "optimizer": {}}, "optimizer belongs to the recipe"),
    (
        {"zero_optimization": ZERO, "data_types": {"grad_accum_dtype": "float"}},
        "data_types.grad_accum_dtype is 'float'; allowed are fp32 and bf16",
    ),
    ({"zero_optimization": ZERO, "data_types": "fp32"}, "data_types: expected keys and values"),
]


@pytest.mark.parametrize(("config", "told"), DEEPSPEED)
def test_a_deepspeed_file_that_cannot_be_meant_is_refused(small_corpus, tmp_path, config, told):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(config))
    message = refused(lambda: check(small_corpus, deepspeed=str(path)))
    assert told in message
    assert str(path) in message


PRETRAINED = [
    ("", "not a valid JSON file"),
    ("{}", "Should have a `model_type` key"),
    ('{"model_type": "qwen3"', "not a valid JSON file"),
    ('{"model_type": "nope"}', "does not recognize this architecture"),
    ('{"model_type": "qwen3", "vocab_size": 100}', "100 is smaller than the corpus's 512"),
    ('{"model_type": "qwen3", "vocab_size": "x"}', "'vocab_size' expected int, got str"),
    ('{"model_type": "x", "auto_map": {"AutoConfig": "a.B"}}', "contains custom code"),
    ("3", "model: "),
]


@pytest.mark.parametrize(("config", "told"), PRETRAINED)
def test_a_pretrained_model_that_cannot_be_read_is_refused(small_corpus, tmp_path, config, told):
    (tmp_path / "config.json").write_text(config)
    assert told in refused(lambda: check(small_corpus, model={"pretrained": str(tmp_path)}))


# --- sources of a model that are none ---


def told_of_source(pretrained: object) -> str:
    model = Model(pretrained=str(pretrained))
    return refused(lambda: resolve_model_config(model, vocab_size=512, dtype=torch.float32))


def test_a_run_as_the_model_is_refused_with_its_export(tmp_path):
    run = tmp_path / "quickstart"
    (run / "export").mkdir(parents=True)
    (run / "recipe.resolved.yaml").write_text("seed: 1\n")
    told = f"model.pretrained: {run} is a run, not a model: "
    assert told_of_source(run) == told + f"export it with `python -m training export {run}`"
    (run / "export" / "adapter_config.json").write_text("{}")
    assert told_of_source(run) == told + f"export it with `python -m training export {run} --merge`"
    (run / "export" / "config.json").write_text("{}")
    assert told_of_source(run) == told + f"use {run / 'export'}"


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that nobody listens at, without waits between the attempts."""
    closed = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    template = closed + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.mark.parametrize(
    ("offline", "why"),
    [
        (True, "HF_HUB_OFFLINE forbids to ask the hub"),
        (False, "the hub cannot be reached ([Errno 111] Connection refused)"),
    ],
)
def test_a_model_that_only_a_hub_out_of_reach_may_have_is_one_line(
    no_hub, monkeypatch, caplog, offline, why
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    logging.getLogger("huggingface_hub").addHandler(caplog.handler)
    try:
        said = told_of_source("nobody/has-this")
    finally:
        logging.getLogger("huggingface_hub").removeHandler(caplog.handler)
    assert said == (
        "model.pretrained nobody/has-this: no folder of this name here, not in the hub's cache, "
        f"and {why}"
    )
    assert not caplog.messages


def test_what_the_hub_answers_is_told(no_hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub() as server:  # does not know HEAD
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        said = told_of_source("nobody/has-this")
    assert "and the hub does not give it: Server error '501" in said


def test_a_model_that_is_not_on_the_hub_is_told_in_the_words_of_transformers():
    error = OSError("a/b is not a valid\nmodel identifier")
    error.__cause__ = ValueError("404")
    said = why_unread(Model(pretrained="a/b"), error)
    assert said == "model: a/b is not a valid model identifier"
