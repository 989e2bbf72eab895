"""Forecasts of memory against what steps hold, and advice that fits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from launch.__main__ import main
from launch.planner.advice import advise, faster, more_gpus
from launch.planner.forecast import Forecast, forecast
from launch.planner.machine import Machine
from launch.planner.models import PUBLIC_MODELS, find_architecture
from launch.planner.prefetch import gathered_numbers, order_of_uses
from launch.planner.sizes import from_config
from launch.planner.zero import read_zero
from tests.grids import WHOLE
from tests.launch.measured_memory import measure_peaks
from tests.launch.planned_shapes import SHAPES, Shape, beside_adapter, forecast_peaks
from training.config.ema import Ema
from training.config.load import load_recipe
from training.config.teacher import Teacher

REPO_ROOT = Path(__file__).resolve().parents[2]
RECIPES = REPO_ROOT / "training" / "recipes"
QWEN_8B = str(RECIPES / "qwen3_8b.yaml")
FOR_ONE_GPU = ["qwen3_0.6b", "qwen3_0.6b_lora", "qwen3_1.7b", "qwen3_8b", "llama3.1_8b"]
FOR_A_NODE = ["qwen3_8b_32k", "qwen3_8b_128k"]
OF_EACH_KIND = ("experts, checkpointing", "clamped experts", "latent", "delta",
                "delta, checkpointing", "mamba", "convolution", "several sizes", "tiled",
                "tiled, long sample")  # fmt: skip
MEASURED = (
    *("activations", "two to a sample", "experts", "stage 1"),
    *(("all kept whole", "tied", *OF_EACH_KIND) if WHOLE else ()),
)


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(REPO_ROOT)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-hub"))


@pytest.mark.parametrize("shape", [s for s in SHAPES if s.name in MEASURED], ids=lambda s: s.name)
def test_forecast_is_within_a_tenth_of_what_steps_hold(shape: Shape, tmp_path: Path) -> None:
    recipe = shape.recipe(tmp_path)
    measured = measure_peaks(recipe, world_size=shape.num_ranks)
    forecasts = forecast_peaks(recipe, num_ranks=shape.num_ranks)
    assert forecasts["load"].total == pytest.approx(measured["load"], rel=0.1)
    assert forecasts["forward"].total == pytest.approx(measured["forward"], rel=0.1)
    assert forecasts["backward"].total == pytest.approx(measured["backward"], rel=0.1)
    assert forecasts["step"].total == pytest.approx(measured["update"], rel=0.1)


def test_a_teacher_and_an_average_are_forecast_within_a_tenth(tmp_path: Path) -> None:
    plain = next(shape for shape in SHAPES if shape.name == "bf16, checkpointing").recipe(tmp_path)
    recipe = replace(plain, ema=Ema(half_life_steps=4.0), teacher=Teacher(kind="ema"))
    measured = measure_peaks(recipe, world_size=2)
    forecasts = forecast_peaks(recipe, num_ranks=2)
    assert forecasts["load"].total == pytest.approx(measured["load"], rel=0.1)
    assert forecasts["forward"].total == pytest.approx(measured["forward"], rel=0.1)
    assert forecasts["backward"].total == pytest.approx(measured["backward"], rel=0.1)
    assert forecasts["step"].total == pytest.approx(measured["update"], rel=0.1)


def test_a_stored_teacher_takes_neither_weights_nor_a_forward_pass() -> None:
    def planned(teacher: Teacher | None) -> Forecast:
        recipe = replace(load_recipe(QWEN_8B), teacher=teacher)
        return forecast(recipe, Machine(num_gpus=64, gpu_gib=80.0, corpus_tokens=10**8))

    none, base = planned(None), planned(Teacher(kind="base"))
    stored = planned(Teacher(kind="scores", scores="8b"))
    assert stored.duration == none.duration
    assert base.duration.passes.hardware == none.duration.passes.hardware + 1
    for phase in ("save", "backward", "step"):
        assert stored.moments[phase] == none.moments[phase]
    in_forward = [each.moments["forward"].total for each in (none, stored, base)]
    assert in_forward[0] < in_forward[1] < in_forward[2]


@pytest.mark.parametrize("kind", ["lora", *(("dora",) if WHOLE else ())])
def test_an_adapter_is_forecast_within_a_tenth(tmp_path: Path, kind: str) -> None:
    """Loading is not compared: here the whole base passes through the same memory."""
    plain = next(shape for shape in SHAPES if shape.name == "bf16, checkpointing").recipe(tmp_path)
    recipe = beside_adapter(plain, tmp_path, kind=kind)
    measured = measure_peaks(recipe, world_size=2)
    forecasts = forecast_peaks(recipe, num_ranks=2)
    assert forecasts["forward"].total == pytest.approx(measured["forward"], rel=0.1)
    assert forecasts["backward"].total == pytest.approx(measured["backward"], rel=0.1)
    assert forecasts["step"].total == pytest.approx(measured["update"], rel=0.12)


def test_frozen_weights_have_neither_gradients_nor_optimizer_state() -> None:
    machine = Machine(num_gpus=1, gpu_gib=6)
    recipe = load_recipe(RECIPES / "qwen3_0.6b_lora.yaml")
    assert forecast(recipe, machine).fits
    planned = forecast(replace(recipe, ema=None, teacher=None), machine)
    # rank 16; q and o have 1024 + 2048 inputs and outputs, k and v 2048, the MLP's three 4096
    assert planned.arch.trained == 28 * 16 * (2 * 3072 + 2 * 2048 + 3 * 4096)
    held = planned.moments["save"]
    assert held.parameters == 2 * (planned.arch.parameters + planned.arch.trained)
    assert held.gradients == 4 * planned.arch.trained
    assert held.optimizer == 12 * planned.arch.trained
    assert planned.host.checkpoint_on_disk == 12 * planned.arch.trained


def test_an_average_of_the_weights_costs_its_fp32_shards(tmp_path: Path) -> None:
    plain = next(shape for shape in SHAPES if shape.name == "bf16, checkpointing").recipe(tmp_path)
    averaged = replace(plain, ema=Ema(half_life_epochs=1.0))
    without, with_average = (forecast_peaks(each, num_ranks=2) for each in (plain, averaged))
    parameters = find_architecture(plain).parameters
    for phase, more_bytes in {"forward": 4, "step": 4, "save": 4, "evaluation": 4 + 2}.items():
        more = with_average[phase].total - without[phase].total
        assert more == pytest.approx(more_bytes * parameters / 2, rel=1e-3)


def test_regularisers_cost_a_copy_of_the_base_and_a_byte_for_each_channel_that_may_drop() -> None:
    def planned(names: str) -> Forecast:
        recipe = load_recipe(QWEN_8B, [f"regularisers=[{names}]"])
        recipe = replace(recipe, model=replace(recipe.model, activation_checkpointing=False))
        return forecast(recipe, Machine(num_gpus=64, gpu_gib=80.0, corpus_tokens=10**8))

    plain, near = planned("none"), planned("l2_sp")
    more = near.moments["step"].total - plain.moments["step"].total
    assert more == pytest.approx(2 * plain.arch.parameters / 64, rel=1e-3)
    arch, tokens = plain.arch, plain.run.activations.tokens
    more = planned("mlp_dropout").moments["forward"].total - plain.moments["forward"].total
    assert more == arch.layers * arch.intermediate * tokens
    assert planned("none").duration.passes.hardware == 3.0
    assert planned("entrodrop,mir").duration.passes.hardware == 2 * 3.0  # entropies of a reference
    assert not planned("eaft").run.one_pass_head


@pytest.mark.parametrize("name", sorted(PUBLIC_MODELS))
def test_parameters_are_counted_as_transformers_makes_them(name: str) -> None:
    config = PUBLIC_MODELS[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    recipe = load_recipe(QWEN_8B, [f"model.pretrained={name}"])
    arch = find_architecture(recipe)
    assert arch.parameters == sum(parameter.numel() for parameter in model.parameters())
    layer = model.model.layers[0]
    assert sum(arch.weights_of(arch.stack[0])) == sum(
        parameter.numel() for parameter in layer.parameters()
    )


def test_published_sizes_are_met() -> None:
    found = {
        name: from_config(config, source="table").parameters
        for name, config in PUBLIC_MODELS.items()
    }
    assert found == {  # as the safetensors files on the hub say
        "Qwen/Qwen3-0.6B": 596_049_920,
        "Qwen/Qwen3-1.7B": 1_720_574_976,
        "Qwen/Qwen3-8B": 8_190_735_360,
        "meta-llama/Llama-3.1-8B": 8_030_261_248,
    }


def test_plan_loads_no_torch() -> None:
    blocker = (
        "import sys\n"
        "for name in ('torch', 'deepspeed', 'transformers', 'numpy'): sys.modules[name] = None\n"
        "from launch.__main__ import main\n"
        f"sys.exit(main(['plan', {QWEN_8B!r}, '--gpus', '8', '--gpu-gib', '80']))"
    )
    shown = subprocess.run([sys.executable, "-c", blocker], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "FITS: " in shown.stdout


@pytest.mark.parametrize(
    ("gpu_gib", "overrides", "expected"),
    [
        (60, ["train.micro_batch_samples=2"], ["model.activation_checkpointing=true"]),
        (50, [], ["model.activation_checkpointing=true"]),
        (18, ["model.activation_checkpointing=true"], ["offload"]),
    ],
)
def test_advice_fits_and_is_the_cheapest(
    gpu_gib: float, overrides: list[str], expected: list[str]
) -> None:
    off = ["model.activation_checkpointing=false", *overrides]
    machine = Machine(num_gpus=8, gpu_gib=gpu_gib)
    given = forecast(load_recipe(QWEN_8B, off), machine)
    assert not given.fits
    found = advise(given)
    assert found is not None
    changes, changed = found
    assert changed.fits
    assert [part for part in expected if any(part in change for change in changes)] == expected
    again = forecast(load_recipe(QWEN_8B, [*off, *changes]), machine)
    assert again.peak_bytes == changed.peak_bytes


def test_weights_that_do_not_fit_whole_are_sharded() -> None:
    given = forecast(
        load_recipe(QWEN_8B, ["deepspeed=ds_configs/zero1.json"]), Machine(num_gpus=8, gpu_gib=40)
    )
    assert not given.fits
    found = advise(given)
    assert found is not None and found[1].fits
    assert "deepspeed=ds_configs/zero3.json" in found[0]
    held = given.moments["save"]
    assert held.parameters == 2 * given.arch.parameters
    assert held.gradients == 4 * given.arch.parameters
    assert held.optimizer == pytest.approx(12 * given.arch.parameters / 8, rel=1e-3)


def test_cheaper_changes_come_first() -> None:
    """Each limit lies just below what the change before it needs."""
    recipe = load_recipe(QWEN_8B, ["model.activation_checkpointing=false", "seed=1"])
    recipe = replace(recipe, train=replace(recipe.train, micro_batch_samples=8))
    seen, gpu_gib = [], 1000.0
    while found := advise(forecast(recipe, Machine(num_gpus=8, gpu_gib=gpu_gib, margin_frac=0.0))):
        seen.append(found[0])
        gpu_gib = (found[1].peak_bytes - 1) / 2**30
    dearest_first = (
        "deepspeed=ds_configs/zero3_offload_all",
        "deepspeed=ds_configs/zero3_offload_optimizer",
        "train.sequence_parallel_size",
        "train.micro_batch_samples",
        "model.activation_checkpointing",
    )
    uses = [[any(c.startswith(key) for c in changes) for key in dearest_first] for changes in seen]
    assert uses == sorted(uses)
    assert sum(any(column) for column in zip(*uses, strict=True)) >= 4


def _settings_by_scale() -> list[tuple[str, int, str]]:
    page = (REPO_ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w[\w.]*)` \| (.+) \| (.+) \| (.+) \|$", page, re.MULTILINE)
    cells = [(name, n, row[i]) for name, *row in rows for i, n in enumerate((1, 8, 64))]
    return [(name, n, cell.strip("`")) for name, n, cell in cells]


@pytest.mark.parametrize(("name", "num_gpus", "written"), _settings_by_scale())
def test_settings_by_scale_are_those_of_the_planner(name: str, num_gpus: int, written: str) -> None:
    if written == "needs 8":
        with pytest.raises(ValueError, match="--gpus 1 is not a multiple of"):
            forecast(load_recipe(f"{RECIPES / name}.yaml"), Machine(num_gpus, gpu_gib=80))
        return
    given = forecast(load_recipe(f"{RECIPES / name}.yaml"), Machine(num_gpus, gpu_gib=80))
    changes: list[str] = []
    if not given.fits:
        found = advise(given)
        assert found is not None
        changes, given = found
    if found := faster(given):
        changes, given = [*changes, *found[0]], found[1]
    assert given.fits
    assert (" ".join(changes) or "as it is") == written


def test_what_is_faster_takes_all_the_room_there_is() -> None:
    """Twice the micro-batch would not fit or is enough already; a byte less takes another."""
    recipe = load_recipe(QWEN_8B, ["train.micro_batch_samples=1"])
    found = faster(forecast(recipe, Machine(num_gpus=8, gpu_gib=141)))
    assert found is not None and found[1].fits
    train = found[1].recipe.train
    assert not found[1].recipe.model.activation_checkpointing
    more = replace(train, micro_batch_samples=2 * train.micro_batch_samples)
    is_at_most = train.micro_batch_samples * recipe.data.sequence_tokens == 16_384
    assert is_at_most or not forecast(replace(found[1].recipe, train=more), found[1].machine).fits
    limit = (found[1].peak_bytes - 1) / 2**30
    less = faster(forecast(recipe, Machine(num_gpus=8, gpu_gib=limit, margin_frac=0.0)))
    assert less is None or less[0] != found[0]


def test_more_gpus_are_named_when_no_change_fits() -> None:
    given = forecast(load_recipe(QWEN_8B), Machine(num_gpus=1, gpu_gib=80, host_gib=64))
    assert advise(given) is None
    found = more_gpus(given)
    assert found is not None
    num_gpus, changes = found
    again = load_recipe(QWEN_8B, changes)
    assert forecast(again, Machine(num_gpus=num_gpus, gpu_gib=80, host_gib=64)).fits


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus", "6"], ["global_batch_tokens 262144", "Nearest", "245760 or 270336"]),
        (["--gpus", "8", "train.sequence_parallel_size=16"], ["--gpus 8", "nearest that are: 16"]),
        (["--gpus", "0"], ["'0' is not an integer above 0"]),
        (["--gpus", "8", "--hfu", "40"], ["'40' is not between 0 and 1"]),
        (["--gpus", "8", "--gpu", "80"], ["--gpu"]),
        (["--gpus", "8", "--frobs"], ["--frobs: unknown argument"]),
        (["--gpus", "8", "train.epoch=3"], ["train.epoch", "did you mean train.epochs"]),
        (["--gpus", "8", "deepspeed=ds_configs/none.json"], ["none.json", "No such file"]),
        (
            ["--gpus", "8", "model.pretrained=Qwen/Qwen3-8b"],
            ["Qwen3-8b", "did you mean Qwen/Qwen3-8B"],
        ),
        (
            ["--gpus", "8", "model.pretrained=Qwen/Qwen3-30B-A3B"],
            ["meta-llama/Llama-3.1-8B; `hf download Qwen/Qwen3-30B-A3B config.json` brings"],
        ),
        (
            ["--gpus", "8", "model.pretrained=null", "model.config={model_type: gpt2}"],
            ["vocab_size"],
        ),
        (
            [
                "--gpus",
                "8",
                "model.pretrained=null",
                "model.config={model_type: mamba, vocab_size: 9}",
            ],
            ["model_type mamba", "llama, ministral3"],
        ),
    ],
)
def test_mistakes_are_one_message(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["plan", QWEN_8B, "--gpu-gib", "80", *arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr().err
    assert code == 2
    assert all(word in said for word in words), said
    assert "Traceback" not in said


def test_overrides_are_not_called_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan"])
    assert "are required: RECIPE, --gpus, --gpu-gib" in capsys.readouterr().err


@pytest.mark.parametrize(("gpu_gib", "code"), [("80", 0), ("8", 1)])
def test_exit_code_says_whether_it_fits(
    gpu_gib: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", QWEN_8B, "--gpus", "8", "--gpu-gib", gpu_gib, "--corpus-tokens", "1000000"]
    assert main([*arguments, "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["fits"] is (code == 0)
    assert told["time"]["total_steps"] == 31  # 8 epochs of 10^6 tokens by 262,144
    assert main(arguments) == code
    text = capsys.readouterr().out
    assert ("DOES NOT FIT" in text) is (code == 1)
    assert f"{told['peak_bytes'] / 2**30:.1f} GiB at the peak" in text


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff"])
def test_a_models_file_that_is_damaged_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}: "):
        find_architecture(load_recipe(QWEN_8B, [f"model.pretrained={tmp_path}"]))


@pytest.mark.parametrize("name", [*FOR_ONE_GPU, *FOR_A_NODE])
def test_shipped_recipes_divide_fit_and_have_their_baseline(name: str) -> None:
    path = RECIPES / f"{name}.yaml"
    assert "regulariser=none" in path.read_text(encoding="utf-8")
    recipe, baseline = load_recipe(path), load_recipe(path, ["regulariser=none"])
    assert replace(baseline, regularisers=recipe.regularisers) == recipe
    for num_gpus in (1, 8, 64) if name in FOR_ONE_GPU else (8, 64):
        for ds_file in ("zero3", "zero3_offload_optimizer", "zero3_offload_all"):
            planned = forecast(
                replace(recipe, deepspeed=f"ds_configs/{ds_file}.json"),
                Machine(num_gpus=num_gpus, gpu_gib=80),
            )
            assert planned.fits or (num_gpus == 1 and ds_file == "zero3")


def test_gathered_weights_stay_within_what_deepspeed_is_told() -> None:
    recipe = load_recipe(QWEN_8B)
    arch, zero = find_architecture(recipe), read_zero(recipe)
    uses, sizes = order_of_uses(arch, checkpointing=True)
    walked = gathered_numbers(arch, zero, checkpointing=True)
    assert [use for use, _ in walked] == list(uses)
    most = max(numbers for _, numbers in walked)
    # twice the weights gathered ahead, which are copied out of their buffer
    largest = max(sum(sizes[weight] for weight in use.weights) for use in uses)
    assert most <= zero.max_live + largest + 2 * (zero.prefetch_bucket + largest)
    assert all(numbers >= sum(sizes[w] for w in use.weights) for use, numbers in walked)


LONG = str(RECIPES / "qwen3_8b_128k.yaml")


def test_offloaded_inputs_of_layers_are_on_the_host_and_not_on_the_gpu() -> None:
    machine = Machine(num_gpus=8, gpu_gib=80)
    before = forecast(load_recipe(LONG), machine)
    after = forecast(load_recipe(LONG, ["model.activation_offloading=true"]), machine)
    inputs = 36 * 16_384 * 4096 * 2
    for phase in ("forward", "backward"):
        fallen = before.moments[phase].activations - after.moments[phase].activations
        assert fallen == pytest.approx(inputs, rel=0.03)  # one at a time is on the GPU
    assert before.moments["step"] == after.moments["step"]
    assert after.host.activations == after.host.pinned == 8 * inputs  # powers of two by themselves
    assert after.host.peak_bytes - before.host.peak_bytes == 8 * inputs


def test_tiles_are_planned_for_layers_that_have_a_plain_mlp() -> None:
    machine = Machine(num_gpus=8, gpu_gib=80)
    plain = forecast(load_recipe(LONG), machine)
    tiled = forecast(load_recipe(LONG, ["model.tiled_mlp=true"]), machine)
    assert not plain.run.activations.is_tiled and tiled.run.activations.is_tiled
    held = [each.moments["backward"].activations for each in (plain, tiled)]
    inner = (4 + 1) * 12_288 * 2  # of a token; there are four times as many as in a tile
    assert held[0] - held[1] > 0.5 * (16_384 - 4096) * inner
    share = 2 * 36 * 3 * 4096 * 12_288 / (plain.duration.flops_per_token / 4)
    assert tiled.duration.passes.hardware == pytest.approx(4 + share)
    assert tiled.duration.passes.model == 3


def test_the_longest_samples_on_the_page_are_those_of_the_planner(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each fits, and 1,024 tokens a rank more do not; the page repeats what is printed."""
    page = (REPO_ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    columns = []
    for num_gpus, changes in ((1, ["deepspeed=ds_configs/zero3_offload_optimizer.json"]), (8, [])):
        options = ["--gpus", str(num_gpus), "--gpu-gib", "80", "--longest", *changes]
        assert main(["plan", str(RECIPES / "llama3.1_8b.yaml"), *options]) == 0
        _, *rows = capsys.readouterr().out.splitlines()
        found = [re.split(r"\s{2,}", row.strip()) for row in rows[1:]]
        columns.append({levers: cells for levers, *cells in found})
    assert len(columns[0]) == 6
    for levers, cells in columns[0].items():
        assert f"| {levers} | {' | '.join([*cells, *columns[1][levers]])} |" in page
    one_gpu = ["--gpus", "1", "--gpu-gib", "80", "--longest", "model.kernels=liger"]
    one_gpu += ["deepspeed=ds_configs/zero3_offload_optimizer.json"]
    assert main(["plan", str(RECIPES / "llama3.1_8b.yaml"), *one_gpu]) == 0
    longest = capsys.readouterr().out.split()[-1]
    assert f"the last row of one\nGPU is {longest}." in page
    levers = ["model.activation_offloading=true", "model.tiled_mlp=true"]
    for more, fits in ((0, True), (8 * 1024, False)):
        tokens = 2_310_144 + more
        sizes = [f"data.sequence_tokens={tokens}", f"train.global_batch_tokens={tokens}"]
        sizes += ["train.sequence_parallel_size=8", *levers]
        recipe = load_recipe(RECIPES / "llama3.1_8b.yaml", sizes)
        assert forecast(recipe, Machine(num_gpus=8, gpu_gib=80)).fits is fits


@pytest.mark.parametrize(
    "changes", [["regularisers=[mlp_dropout]"], ["adapter={rank: 8, dropout: 0.05}"]]
)
def test_tiles_are_not_proposed_beside_dropout_that_draws_for_whole_rows(
    changes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(RECIPES / "llama3.1_8b.yaml"), "--gpus", "1", "--gpu-gib", "18", *changes]
    assert main(["plan", *options]) == 1
    assert main(["plan", *options, "--longest"]) == 1
    assert "tiled_mlp" not in capsys.readouterr().out


def test_where_not_even_the_shortest_sample_fits_the_exit_code_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [str(RECIPES / "llama3.1_8b.yaml"), "--gpus", "1", "--gpu-gib", "8", "--longest"]
    assert main(["plan", *options]) == 1
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert {row.split()[-1] for row in rows} == {"-"}


def test_fused_layers_keep_no_copies_in_fp32_and_no_activation_of_the_gate() -> None:
    """As a count of what Liger's functions save: norms' inputs as they are, gate, up, product."""
    plain, fused = (
        forecast(load_recipe(LONG, [f"model.kernels={kernels}"]), Machine(8, gpu_gib=80))
        for kernels in ("plain", "liger")
    )
    acts, layer = plain.run.activations, plain.arch.stack[0]
    queries, keys, hidden, inner = 4096, 1024, 4096, 12_288
    of_token = 2 * 4 * hidden + 4 * (queries + keys) + 2 * inner
    assert acts.layer(layer) - fused.run.activations.layer(layer) == acts.tokens * of_token


def test_a_second_partition_costs_a_share_of_the_weights_from_forward_to_update(
    tmp_path: Path,
) -> None:
    config = json.loads((REPO_ROOT / "ds_configs" / "zero3.json").read_text())
    config["zero_optimization"]["zero_hpz_partition_size"] = 8
    (tmp_path / "hpz.json").write_text(json.dumps(config))
    machine = Machine(num_gpus=64, gpu_gib=80)
    plain = forecast(load_recipe(QWEN_8B), machine)
    doubled = forecast(load_recipe(QWEN_8B, [f"deepspeed={tmp_path / 'hpz.json'}"]), machine)
    assert plain.moments["load"] == doubled.moments["load"]
    for phase in ("forward", "backward", "step", "save"):
        added = doubled.moments[phase].total - plain.moments[phase].total
        assert added == pytest.approx(2 * plain.arch.parameters / 8, rel=1e-3)
    with pytest.raises(ValueError, match="zero_hpz_partition_size 8 does not divide the number"):
        forecast(doubled.recipe, Machine(num_gpus=4, gpu_gib=80))
    for wrong in (0, -1, 2.5, "8", None, True):
        config["zero_optimization"]["zero_hpz_partition_size"] = wrong
        (tmp_path / "hpz.json").write_text(json.dumps(config))
        told = f"hpz.json: .*: expected a whole number of at least 1 .is {wrong!r}.$"
        with pytest.raises(ValueError, match=told):
            forecast(doubled.recipe, machine)
