"""Preflight on real processes: a good set-up passes; each planted fault is named with its rank."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch.__main__ import main
from launch.preflight.catalogue import CHECKS
from tests.distributed import run_ranks
from tests.launch.preflights import failure, findings, only, preflight, preflight_on_rank
from tests.launch.shared_runs import write_recipe
from tests.training.short_runs import short_recipe
from tests.warm_python import warm_python

REPO_ROOT = Path(__file__).resolve().parents[2]


NUMERICS = ("losses", "weights", "documents", "gradients")


@pytest.fixture
def recipe(small_corpus: Path, tmp_path: Path) -> str:
    """Two ranks share each sequence; saved every fourth step; for two ranks and for four."""
    saves = {"checkpoint": {"every_steps": 4}}
    made = short_recipe(small_corpus, tmp_path / "run", world_size=4, **saves)
    return str(write_recipe(made, tmp_path / "recipe.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_a_good_set_up_passes_every_check(recipe: str, world_size: int) -> None:
    done = preflight(recipe, world_size=world_size)
    assert done["code"] == 0, done
    verdicts = {row["name"]: row["verdict"] for row in done["printed"]["checks"]}
    assert list(verdicts) == list(CHECKS)
    # more processes than cores, and disks of busy machines, are worth a warning
    assert {name for name in verdicts if verdicts[name] == "warn"} <= {"devices", "disk"}, done
    for name in ("versions", "paths", "model", "start", "contents", "all-to-all", *NUMERICS):
        assert verdicts[name] == "pass", done
    assert not Path(recipe).with_name("run").exists()  # nothing is left behind


@pytest.mark.slow
def test_a_single_process_needs_no_launcher_and_prints_a_table(recipe: str) -> None:
    command = [warm_python(), "-m", "launch", "preflight", recipe]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "train.sequence_parallel_size=1"],
        env=environment, capture_output=True, text=True, cwd=REPO_ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done
    first, *rows, last = done.stdout.splitlines()
    assert "1 process on" in first
    assert last.startswith(f"{len(CHECKS)} checks in ")
    assert [row.split()[0] for row in rows if not row.startswith(" ")] == list(CHECKS)


@pytest.mark.parametrize(
    "override", ["data.corpus={}", "replay={{corpus: {}, share: 0.2}}"], ids=["corpus", "replay"]
)
def test_a_flipped_bit_in_what_is_trained_on_is_found(
    recipe: str, small_corpus: Path, tmp_path: Path, override: str
) -> None:
    damaged = shutil.copytree(small_corpus, tmp_path / "damaged")
    shard = next(damaged.glob("*.tokens"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    done = preflight(recipe, override.format(damaged), *only("contents"))
    found = failure(done, "contents")
    assert shard.name in found["found"] and "damaged" in found["found"]
    assert len(found["ranks"]) == 1  # whose share it was


def test_a_run_folder_that_cannot_be_written_is_told_once_by_each_check(recipe: str) -> None:
    done = preflight(recipe, "run_dir=/proc/no-run", *only("paths", "disk"))
    assert done["code"] == 1
    (told,) = findings(done, "paths")
    assert told["verdict"] == "fail" and "/proc" in told["found"], told
    (told,) = findings(done, "disk")
    assert told["verdict"] == "fail" and told["ranks"] == [0, 1], told


def no_large_files_on_rank_1() -> None:
    import resource

    if os.environ["RANK"] == "1":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))


def test_a_rank_that_cannot_write_its_share_is_named(recipe: str) -> None:
    found = failure(preflight(recipe, *only("disk"), plant=no_large_files_on_rank_1), "disk")
    assert found["ranks"] == [1] and "File too large" in found["found"]


def test_a_vocabulary_too_small_and_too_little_memory_are_told(recipe: str) -> None:
    changes = ["model.config.vocab_size=300", "model.config.hidden_size=8192"]
    changes += ["model.config.num_hidden_layers=80", "model.config.intermediate_size=32768"]
    done = preflight(recipe, *changes, *only("memory", "space", "model"))
    assert "smaller than the corpus's 512" in findings(done, "model")[0]["found"]
    (memory,) = findings(done, "memory")
    assert memory["verdict"] == "warn" and "free" in memory["found"]
    assert findings(done, "space")[0]["verdict"] == "fail"


def clock_of_rank_1_is_ahead() -> list[dict[str, Any]]:
    """Findings on rank 0, the two ranks taken for two hosts."""
    from launch.preflight import clocks
    from launch.preflight.setting import Context, Setting
    from tests.training.layouts import tiny_recipe
    from training.ranks.dist import init_layout

    layout = init_layout(sp_size=1)
    setting = Setting(recipe=tiny_recipe(), hosts=("h1", "h2"), on_gpu=False)
    context = Context(setting, layout, cpu_group=None, nonce="")
    ahead = 3.0 if layout.rank == 1 else 0.0
    found = clocks.measure(context, now=lambda: time.time() + ahead)
    return [] if layout.rank == 0 else clocks.judge(setting, {1: found})


def test_a_skewed_clock_is_measured_over_the_network_and_its_host_named() -> None:
    _, (finding,) = run_ranks(clock_of_rank_1_is_ahead, world_size=2)
    assert finding.verdict == "warn"
    assert finding.found == "the clock of h2 is 3.0 s ahead of that of h1"


def one_rank_hangs(recipe: str) -> list[Any] | None:
    """Rank 1 leaves the first check in an endless wait, the others in a collective."""
    import torch.distributed as dist

    from launch.preflight.checks import Check
    from launch.preflight.finding import Finding
    from launch.preflight.meeting import Request, meet
    from launch.preflight.run import run_checks

    def hang(context: Any) -> None:
        if context.layout.rank == 1:
            time.sleep(600)
        dist.barrier()

    passes = Check(lambda context: context.layout.rank, lambda _s, _m: [Finding("pass", "ran")])
    checks = {"hangs": Check(hang, passes.judge, talks=True)}
    checks |= {"talks": passes._replace(talks=True), "alone": passes}
    context, exchange = meet(Request(recipe, []))
    results = run_checks(context, exchange, seconds=2.0, show=lambda _: None, checks=checks)
    exchange.leave()
    return results if context.layout.is_main else None


def test_a_rank_that_hangs_is_named_and_keeps_nobody_waiting(recipe: str) -> None:
    began = time.monotonic()
    results, _ = run_ranks(one_rank_hangs, recipe, world_size=2)
    assert time.monotonic() - began < 60
    hangs, talks, alone = results
    told = {finding.ranks: finding.found for finding in hangs.findings}
    assert hangs.verdict == "fail" and (1,) in told
    assert "no answer in 2 seconds" in told[1,] and "in hang)" in told[1,]
    assert talks.verdict == "skip" and "not run" in talks.findings[0].found
    assert alone.verdict == "pass"


def recipe_is_missing_on_rank_1(recipe: str) -> dict[str, Any]:
    path = recipe if os.environ["RANK"] == "0" else recipe + ".elsewhere"
    return preflight_on_rank([path], None)


def test_a_recipe_that_one_host_lacks_ends_all_with_one_message(recipe: str) -> None:
    main_rank, other = run_ranks(recipe_is_missing_on_rank_1, recipe, world_size=2)
    assert (main_rank["code"], other["code"]) == (2, 2)
    assert "error: rank 1 on " in main_rank["err"] and "No such file" in main_rank["err"]
    assert other["err"] == ""


def test_mistakes_end_with_2_before_torch_is_loaded(recipe: str) -> None:
    code = (
        "import sys; from launch.__main__ import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    for arguments, told in (
        (["--skip", "dsk,pairs"], "there is no check 'dsk'; did you mean disk"),
        (["--min-gbps", "0"], "--min-gbps 0 is not above 0"),
        (["--skipp", "disk"], "--skipp: unknown argument; did you mean --skip?"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, "preflight", recipe, *arguments],
            capture_output=True, text=True, cwd=REPO_ROOT,
        )  # fmt: skip
        assert done.returncode == 2 and told in done.stderr, done


def test_help_lists_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["preflight", "--help"])
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in CHECKS)


def test_one_changed_line_changes_the_hash_of_the_sources(tmp_path: Path) -> None:
    from launch.preflight.versions import sources_hash

    copy = tmp_path / "checkout"
    for folder in ("common", "launch", "training", "data_prep", "ds_configs"):
        shutil.copytree(REPO_ROOT / folder, copy / folder)
    before = sources_hash(copy)
    with (copy / "training" / "schedule.py").open("a") as file:
        file.write("\n# another line\n")
    assert sources_hash(copy) != before
