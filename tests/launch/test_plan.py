"""The command: what it loads, its mistakes, its exit codes, the shipped recipes and its page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from launch.__main__ import main
from launch.planner.forecast import forecast
from launch.planner.machine import Machine
from tests.launch.shipped_recipes import QWEN_8B, RECIPES, REPO_ROOT
from training.config.load import load_recipe

pytestmark = pytest.mark.usefixtures("in_repository")


FOR_ONE_GPU = ["qwen3_0.6b", "qwen3_0.6b_lora", "qwen3_1.7b", "qwen3_8b", "llama3.1_8b"]


FOR_A_NODE = ["qwen3_8b_32k", "qwen3_8b_128k"]


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


def test_where_not_even_the_shortest_sample_fits_the_exit_code_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [str(RECIPES / "llama3.1_8b.yaml"), "--gpus", "1", "--gpu-gib", "8", "--longest"]
    assert main(["plan", *options]) == 1
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert {row.split()[-1] for row in rows} == {"-"}


@pytest.mark.parametrize(
    ("recipe", "corpus_tokens", "told"),
    [
        (
            "quickstart",
            "100000",
            [
                ": 853,376 parameters in fp32 (",
                "; less than 0.01 s per step, 100 million tokens per second at 0.4 of 989 TFLOPS",
                ": 196 steps, less than a second without",
            ],
        ),
        ("qwen3_0.6b", "1000000", [": 0.596 billion parameters", ": 31 steps, 17 seconds without"]),
        ("qwen3_0.6b", "10000000", [": 306 steps, 2.81 minutes without"]),
        (
            "qwen3_8b",
            "100000000",
            ["8.191 billion", "; 5.42 s per step, 48,407 tokens per", " steps, 4.59 hours without"],
        ),
        ("qwen3_8b", "1000000000", [": 30,518 steps, 1.91 days (45.9 hours) without"]),
    ],
)
def test_sizes_and_times_are_told_in_units_that_read(
    recipe: str, corpus_tokens: str, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["model.config.vocab_size=512"] if recipe == "quickstart" else []
    num_gpus = "2" if recipe == "quickstart" else "8"
    machine = ("--gpus", num_gpus, "--gpu-gib", "80", "--corpus-tokens", corpus_tokens)
    assert main(["plan", str(RECIPES / f"{recipe}.yaml"), *machine, *changes]) == 0
    text = capsys.readouterr().out
    assert [words for words in told if words not in text] == []
