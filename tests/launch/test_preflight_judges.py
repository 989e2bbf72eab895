"""How preflight judges what the ranks have measured: planted figures, no process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.preflight import (
    bandwidth,
    devices,
    disk,
    limits,
    names,
    pairs,
    paths,
    versions,
    weights,
)
from launch.preflight.catalogue import CHECKS as SENTENCES
from launch.preflight.checks import CHECKS
from launch.preflight.finding import name_ranks
from launch.preflight.formatting import count
from launch.preflight.model import _meaning
from launch.preflight.setting import Setting
from tests.training.layouts import tiny_recipe

GIB = 2**30


def setting(hosts: str = "h1 h1 h2 h2", *, on_gpu: bool = False, **changes: Any) -> Setting:
    sp_size = changes.pop("sp_size", 1)
    recipe = tiny_recipe(train__sequence_parallel_size=sp_size)
    return Setting(recipe=recipe, hosts=tuple(hosts.split()), on_gpu=on_gpu, **changes)


def same(value: Any, number: int = 4, **others: Any) -> dict[int, Any]:
    """Measures of all ranks, some of them others: `r2={"name": ...}`."""
    return {rank: others.get(f"r{rank}", value) for rank in range(number)}


def test_every_check_has_its_sentence_in_the_order_in_which_it_runs() -> None:
    assert list(CHECKS) == list(SENTENCES)


def test_ranks_are_named_by_host_in_ranges() -> None:
    hosts = ("h1",) * 4 + ("h2",) * 4
    assert name_ranks([3], hosts) == "rank 3 on h1"
    assert name_ranks([0, 1, 2, 4, 6], hosts) == "ranks 0-2 on h1; ranks 4, 6 on h2"
    many = tuple(f"h{i}" for i in range(30))
    assert name_ranks(range(30), many).endswith("rank 7 on h7; and 22 more hosts")
    assert (count(1, "process"), count(2, "process")) == ("1 process", "2 processes")


@pytest.mark.parametrize("number", range(2, 10))
def test_in_a_tournament_every_pair_meets_once_and_nobody_is_in_two_at_a_time(number: int):
    rounds = pairs.tournament(number)
    met = [frozenset(pair) for pairs_at_once in rounds for pair in pairs_at_once]
    assert len(met) == len(set(met)) == number * (number - 1) // 2
    for pairs_at_once in rounds:
        busy = [host for pair in pairs_at_once for host in pair]
        assert len(busy) == len(set(busy))
    assert len(rounds) == number - 1 + number % 2


def test_of_many_hosts_each_meets_so_many_that_the_check_ends_in_time() -> None:
    rounds = pairs.chosen_rounds(200)
    assert len(rounds) == 32
    assert all(len(pairs_at_once) == 100 for pairs_at_once in rounds)


def all_pairs(hosts: list[str], slow: dict[frozenset[str], float]) -> dict[int, list[list[Any]]]:
    """10 Gbit/s between any two hosts of one rank each, but for those given."""
    return {
        rank: [[b, slow.get(frozenset((a, b)), 10.0)] for b in hosts if b != a]
        for rank, a in enumerate(hosts)
    }


def test_a_slow_host_is_named_once_and_not_its_partners() -> None:
    hosts = ["h1", "h2", "h3", "h4", "h5"]
    slow = {frozenset((host, "h3")): 0.9 for host in hosts}
    (finding,) = pairs.judge(setting(" ".join(hosts)), all_pairs(hosts, slow))
    assert finding.verdict == "warn" and finding.found.startswith("h3 exchanges 0.90 Gbit/s")
    assert "--exclude=h3" in finding.todo
    # three hosts: each healthy one has one slow and one fast partner
    (finding,) = pairs.judge(setting("h1 h2 h3"), all_pairs(hosts[:3], slow))
    assert finding.found.startswith("h3 ")


def test_a_slow_link_between_two_good_hosts_names_both() -> None:
    hosts = ["h1", "h2", "h3", "h4", "h5"]
    measures = all_pairs(hosts, {frozenset(("h2", "h4")): 2.0})
    (finding,) = pairs.judge(setting(" ".join(hosts)), measures)
    assert finding.found.startswith("h2 and h4 exchange 2.00 Gbit/s; the median is 10.00")
    assert finding.ranks == (1, 3)


def test_two_hosts_have_nothing_to_compare_with_but_an_expectation() -> None:
    measures = all_pairs(["h1", "h2"], {})
    assert pairs.judge(setting("h1 h2"), measures)[0].verdict == "pass"
    (finding,) = pairs.judge(setting("h1 h2", min_gbps=100.0), measures)
    assert finding.verdict == "fail" and "--min-gbps asks for 100" in finding.found
    (finding,) = bandwidth.judge_all_reduce(setting("h1 h1", min_gbps=9.0), same({"gbps": 8}, 2))
    assert finding.verdict == "fail"


def test_lanes_of_a_host_add_up_and_the_slower_end_counts() -> None:
    found = {0: [["h2", 4.0]], 1: [["h2", 5.0]], 2: [["h1", 4.0]], 3: [["h1", 3.0]]}
    (finding,) = pairs.judge(setting(), found)
    assert "1 pair, 7.00 Gbit/s" in finding.found


def test_another_version_on_one_host_is_named_with_its_ranks() -> None:
    usual = {"python": "3.11.7", "torch": "2.13.0", "deepspeed": "0.19.8", "sources": "a1"}
    usual |= {"transformers": "5.23.0", "tokenizers": "0.23.3", "accelerate": "1.12"}
    usual |= {"numpy": "2.3"}
    other = usual | {"deepspeed": "0.18.0"}
    first, second = versions.judge(setting(), same(usual, r2=other, r3=other))
    assert first.verdict == "pass"
    assert second.verdict == "fail" and second.ranks == (2, 3)
    assert second.found == "deepspeed is 0.18.0 on ranks 2-3 on h2, 0.19.8 elsewhere"
    (outside,) = versions.judge(setting(), same(other))
    assert outside.verdict == "warn" and "required" in outside.found


def gpu(**changes: Any) -> dict[str, Any]:
    usual = {"name": "H100", "uuid": "a", "capability": [9, 0], "total": 80 * GIB}
    host = {"free": 79 * GIB, "cores": 16, "host_total": 512 * GIB, "host_free": 500 * GIB}
    return usual | host | changes


def test_gpus_that_are_shared_in_use_or_of_another_kind_are_named() -> None:
    measures = {rank: gpu(uuid=str(rank)) for rank in range(4)}
    about = setting(on_gpu=True)
    assert [f.verdict for f in devices.judge(about, measures)] == ["pass"]
    _, shared = devices.judge(about, measures | {1: gpu(uuid="0")})
    assert shared.verdict == "fail" and "ranks 0-1 on h1 share one GPU" in shared.found
    _, busy = devices.judge(about, measures | {3: gpu(uuid="3", free=30 * GIB)})
    assert busy.verdict == "warn" and busy.ranks == (3,)
    _, other = devices.judge(about, measures | {2: gpu(uuid="2", name="A100")})
    assert other.found.startswith("A100 on rank 2 on h2")


def test_a_forecast_that_exceeds_free_memory_warns_and_names_the_planner() -> None:
    measures = {rank: gpu(uuid=str(rank), free=GIB) for rank in range(4)}
    (finding,) = devices.judge_memory(setting(on_gpu=True), measures)
    assert finding.verdict == "warn" and "launch plan RECIPE --gpus 4" in finding.todo


def test_a_folder_that_another_host_does_not_see_is_told_with_its_ranks() -> None:
    sees = {"sees": True, "error": None, "owner_is_me": True, "corpus": "c1"}
    assert paths.judge(setting(), same(sees))[0].verdict == "pass"
    blind = sees | {"sees": False, "corpus": None}
    unseen, unread = paths.judge(setting(), same(sees, r2=blind, r3=blind))
    assert unseen.verdict == "fail" and "not visible to ranks 2-3 on h2" in unseen.found
    assert unread.verdict == "fail" and "cannot be read on h2" in unread.found
    (other,) = paths.judge(setting(), same(sees, r3=sees | {"corpus": "c2"}))
    assert "differs (c2) on h2" in other.found
    (squashed,) = paths.judge(setting(), same(sees, r0=sees | {"owner_is_me": False}))
    assert "root squash" in squashed.found


def test_a_home_that_cannot_be_written_warns() -> None:
    good = {"home": ["/home/u", None], "HF cache": ["/hf", "/hf: Read-only file system"]}
    good |= {"TMPDIR": ["/tmp", None], "TRITON_CACHE_DIR": None, "tmp_free": GIB}
    assert paths.judge_caches(setting(), same(good))[0].verdict == "pass"  # no hub is asked
    bad = good | {"home": ["/home/u", "/home: Read-only file system"]}
    (finding,) = paths.judge_caches(setting(), same(good, r2=bad, r3=bad))
    assert finding.found == "home /home/u of h2: /home: Read-only file system"
    by_name = tiny_recipe(model={"pretrained": "Qwen/Qwen3-0.6B"})
    (finding,) = paths.judge_caches(Setting(by_name, ("h1",), on_gpu=False), {0: good})
    assert finding.verdict == "warn" and "HF cache" in finding.found


def test_small_shared_memory_and_few_open_files_warn() -> None:
    good = {"open_files": 65_536, "memlock": -1, "shm": 8 * GIB, "corpus_files": 40}
    assert limits.judge(setting(on_gpu=True), same(good))[0].verdict == "pass"
    docker = good | {"shm": 64 * 2**20, "memlock": 64 * 1024}
    shm, memlock = limits.judge(setting(on_gpu=True), same(good, r2=docker))
    assert "h2 has 64 MiB free in /dev/shm" in shm.found and "--shm-size" in shm.todo
    assert memlock.verdict == "warn"
    (files,) = limits.judge(setting(), same(good | {"corpus_files": 90_000}, 4))[:1]
    assert "open 65,536 files" in files.found


@pytest.mark.parametrize(
    ("variables", "verdict", "told"),
    [
        ({"NCCL_IB_DISABLE": "1"}, "warn", "InfiniBand is not used"),
        ({"NCCL_SOCKET_IFNAME": "ib0"}, "fail", "h1 has only lo, eth0"),
        ({"GLOO_SOCKET_IFNAME": "lo"}, "fail", "reaches no other host"),
        ({"NCCL_SOCKET_IFNAME": "^docker"}, "pass", "nothing unusual"),
        ({"DEEPSPEED_TIMEOUT": "1"}, "warn", "1 minute for the slowest"),
    ],
)
def test_odd_variables_are_told(variables: dict[str, str], verdict: str, told: str) -> None:
    measured = {"variables": variables, "interfaces": ["lo", "eth0"]}
    first = limits.judge_environment(setting(), same(measured))[0]
    assert first.verdict == verdict and told in first.found


def test_variables_that_differ_between_hosts_are_told() -> None:
    plain = {"variables": {}, "interfaces": ["lo"]}
    tuned = {"variables": {"NCCL_IB_HCA": "mlx5_0"}, "interfaces": ["lo"]}
    (finding,) = limits.judge_environment(setting(), same(plain, r3=tuned))
    assert finding.found == "NCCL_IB_HCA is 'mlx5_0' on rank 3 on h2, not set elsewhere"


def test_names_that_lead_to_the_loopback_and_spread_groups_warn() -> None:
    good = {"addresses": ["10.0.0.1"], "master": "h1", "address": "10.0.0.1"}
    good |= {"interface": "eth0", "chosen": None}
    assert names.judge(setting(), same(good))[0].verdict == "pass"
    loops = good | {"addresses": ["127.0.1.1"]}
    (finding,) = names.judge(setting(), same(good, r2=loops, r3=loops))
    assert "the name h2 is 127.0.1.1" in finding.found
    (finding,) = names.judge(setting("h1 h1 h2 h2", sp_size=4), same(good))
    assert "1 of 1 groups that share sequences span hosts (h1, h2)" in finding.found
    (uneven,) = names.judge(setting("h1 h1 h1 h2"), same(good))
    assert "h1 3, h2 1" in uneven.found


def test_a_disk_that_is_slow_for_one_host_or_full_is_told() -> None:
    good = {"write": 1e9, "read": 1e9, "read_bytes": 64.0 * 2**20, "corpus_bytes": 1e9}
    assert disk.judge(setting(), same(good))[0].verdict == "pass"
    (slow,) = disk.judge(setting(), same(good, r3=good | {"write": 1e7}))
    assert slow.ranks == (3,) and "writing to run_dir: 10 MB/s" in slow.found
    (long,) = disk.judge(setting(), same(good | {"corpus_bytes": 4e12}))
    assert "data.verify: sizes" in long.todo
    room = {"free": 100 * GIB, "names": None}
    assert disk.judge_space(setting(), same(room))[0].verdict == "pass"
    (full,) = disk.judge_space(setting(), same(room, r2=room | {"free": 1000}))
    assert full.verdict == "fail" and "on h2" in full.found
    few, _ = disk.judge_space(setting(), same(room | {"names": 12}))
    assert "12 more files" in few.found


def test_weights_of_a_few_random_numbers_raise_no_false_alarm_and_others_do():
    def draw(*shape: int, scale: float = 0.02, mean: float = 0.0) -> torch.Tensor:
        return mean + scale * torch.randn(shape, generator=generator)

    generator = torch.Generator().manual_seed(0)
    for shape in [(1,), (4,), (8,), (64,), (48, 64)]:
        pairs = [(draw(*shape), draw(*shape)) for _ in range(2000 if len(shape) == 1 else 20)]
        assert all(weights.is_alike(found, expected) for found, expected in pairs), shape
    assert weights.is_alike(torch.ones(4), torch.ones(4))
    assert not weights.is_alike(torch.zeros(4), torch.ones(4))
    assert not weights.is_alike(torch.zeros(4), draw(4))
    assert not weights.is_alike(draw(4, scale=200.0), draw(4))
    assert not weights.is_alike(draw(48, 64, scale=0.03), draw(48, 64))
    assert not weights.is_alike(draw(48, 64, mean=0.02), draw(48, 64))


def test_a_template_that_adds_nothing_is_no_other_rule(tmp_path: Path) -> None:
    plain = {"model": {}, "post_processor": None}
    empty = {"type": "TemplateProcessing", "single": [{"Sequence": {}}], "special_tokens": {}}
    adding = empty | {"special_tokens": {"<s>": {"ids": [1]}}}
    meanings = []
    for number, added in enumerate((None, empty, adding)):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(plain | {"post_processor": added}))
        meanings.append(_meaning(path))
    assert meanings[0] == meanings[1] != meanings[2]
