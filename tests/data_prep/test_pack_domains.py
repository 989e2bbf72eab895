"""Packs of several domains with masks and removals: an account of every token of every domain."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.build import build
from data_prep.build_options import BuildOptions
from data_prep.cleaning.removals import write_removals
from data_prep.ledger import SPLITS
from data_prep.packing.pack import pack
from data_prep.reading.fields import Fields
from data_prep.shards import Corpus, open_corpus
from data_prep.split import split_position
from data_prep.verify import verify

# (ids, mask) of the documents of one domain
Documents = list[tuple[list[int], list[int]]]
DOCUMENT = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 255), min_size=n, max_size=n),
        st.lists(st.integers(0, 1), min_size=n, max_size=n),
    )
)


def build_domains(
    folder: Path, domains: dict[str, Documents], *, tokenizer: Path, masked: tuple[str, ...]
) -> Corpus:
    inputs, fields_of = [], {}
    for name, documents in domains.items():
        lines = [json.dumps({"ids": ids, "mask": mask}) for ids, mask in documents]
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(lines) + "\n")
        inputs.append(f"{name}={path}")
        mask = "mask" if name in masked else None
        fields_of[name] = Fields(ids="ids", loss_mask=mask)
    options = BuildOptions(
        inputs=inputs,
        fields_of=fields_of,
        tokenizer=str(tokenizer),
        out=folder / "corpus",
        num_workers=1,
        val_frac=0.3,
        shard_mib=0.0002,
        overwrite=True,
        add_eos=False,
    )
    build(options)
    return open_corpus(options.out)


def remove(corpus: Corpus, documents: dict[str, list[int]], *, name: str = "exact") -> None:
    numbers = {split: np.array(sorted(documents[split]), dtype=np.int64) for split in SPLITS}
    write_removals(
        corpus,
        name=name,
        kind="exact",
        parameters={},
        documents=numbers,
        reasons={split: ({"of": 0} for _ in numbers[split]) for split in SPLITS},
        overwrite=True,
    )


@given(
    domains=st.dictionaries(
        st.sampled_from(["a", "b", "c"]), st.lists(DOCUMENT, min_size=1, max_size=12), min_size=1
    ),
    masked=st.sets(st.sampled_from(["a", "b", "c"])),
    removals=st.data(),
    seq_len=st.integers(2, 50),
    policy=st.sampled_from(["best_fit", "concat"]),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_tokens_in_are_tokens_out_and_the_ledger(
    tmp_path_factory: pytest.TempPathFactory,
    bpe_folder: Path,
    domains: dict[str, Documents],
    masked: set[str],
    removals: Any,
    seq_len: int,
    policy: Any,
) -> None:
    folder = tmp_path_factory.mktemp("domains")
    # A document on the train side, so that there is something to train on.
    name = next(iter(domains))
    sure = next(n for n in range(256) if split_position(np.array([n])) >= 0.3)
    domains = {**domains, name: [*domains[name], ([sure], [1])]}
    corpus = build_domains(folder, domains, tokenizer=bpe_folder, masked=tuple(masked))
    removed = {
        split: removals.draw(
            st.lists(st.integers(0, corpus.num_documents(split) - 1), unique=True, max_size=4)
            if corpus.num_documents(split)
            else st.just([])
        )
        for split in SPLITS
    }
    remove(corpus, removed)
    index = pack(corpus.folder, seq_len=seq_len, policy=policy)
    assert all(check.problem is None for check in verify(corpus.folder, deep=True))
    for split in SPLITS:
        found: dict[int, dict[int, tuple[int, bool]]] = {}
        first = 0
        for domain in index.manifest.splits[split].domains:
            own = corpus.domain_documents(split)[domain.name]
            num_targets = 0
            for i in range(first, first + domain.num_samples):
                sample, at = index.sample(i, split), 0
                for document, start, length in index.pieces(i, split).tolist():
                    assert document in own
                    assert document not in removed[split]
                    for offset in range(length):
                        token = (int(sample.ids[at]), bool(sample.in_loss[at]))
                        assert found.setdefault(document, {}).setdefault(start + offset, token)
                        at += 1
                num_targets += int((sample.in_loss & (sample.position_ids > 0)).sum())
                assert not sample.in_loss[sample.num_tokens :].any()
            assert num_targets == domain.num_targets
            in_corpus = sum(len(corpus.document(i, split)) for i in own)
            assert domain.num_tokens + domain.num_tokens_removed == in_corpus
            first += domain.num_samples
        for i in range(corpus.num_documents(split)):
            mask = corpus.loss_mask(i, split)
            ids = corpus.document(i, split)
            learnt = np.ones(len(ids)) if mask is None else mask
            expected = list(zip(ids.tolist(), learnt.astype(bool).tolist(), strict=True))
            kept = [found[i][t] for t in sorted(found[i])] if i in found else []
            assert kept == ([] if i in removed[split] else expected)


@pytest.fixture
def two_domains(tmp_path: Path, bpe_folder: Path) -> Corpus:
    rng = np.random.default_rng(0)
    domains = {
        name: [(rng.integers(0, 256, n).tolist(), [1] * n) for n in rng.integers(5, 30, 40)]
        for name in ("notes", "web")
    }
    return build_domains(tmp_path, domains, tokenizer=bpe_folder, masked=())


def test_a_pack_made_before_a_removal_is_refused_until_packed_again(two_domains: Corpus) -> None:
    before = pack(two_domains.folder, seq_len=32).num_tokens()
    remove(two_domains, {"train": [0, 3], "val": []})
    with pytest.raises(ValueError, match=r"packed before the lists in .*removals changed; run"):
        two_domains.open_pack(32)
    with pytest.raises(ValueError, match="packed before the lists"):
        pack(two_domains.folder, seq_len=32)
    index = pack(two_domains.folder, seq_len=32, overwrite=True)
    lost = sum(len(two_domains.document(i)) for i in (0, 3))
    assert index.num_tokens() == before - lost
    (two_domains.folder / "removals" / "exact").rename(two_domains.folder / "kept-elsewhere")
    with pytest.raises(ValueError, match="packed before the lists"):
        two_domains.open_pack(32)


def test_weights_are_kept_with_the_pack_and_change_its_identity(
    two_domains: Corpus, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    plain = pack(two_domains.folder, seq_len=32).fingerprint
    arguments = ("pack", two_domains.folder, "--seq-len", 32, "--epochs", "notes=3")
    code, _, error = run_cli(*arguments)
    assert code == 2
    assert "packed with weights none, asked for notes: epochs 3; add --overwrite" in error
    code, out, _ = run_cli(*arguments, "--proportion", "web=0.5", "--overwrite")
    index = two_domains.open_pack(32)
    assert index.fingerprint != plain
    notes, web = index.mixture()
    assert notes.tokens_per_epoch == 3 * index.manifest.splits["train"].domains[0].num_tokens
    assert abs(web.tokens_per_epoch - notes.tokens_per_epoch) <= 32
    assert f"notes  {notes.tokens_per_epoch:,} tokens per epoch (" in out
    # The same weights again find the pack as it is.
    assert run_cli(*arguments, "--proportion", "web=0.5")[0] == 0
    # So does what is proposed when they have to be packed again.
    _, out, _ = run_cli("dedup", two_domains.folder)
    proposed = "--seq-len 32 --epochs notes=3 --proportion web=0.5 --overwrite"
    assert out.rstrip().endswith(proposed)
    remove(two_domains, {"train": [0], "val": []}, name="more")
    assert f"{proposed}`" in run_cli(*arguments, "--proportion", "web=0.5")[2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--epochs", "note=2"), "no domain 'note' in this corpus; did you mean notes?"),
        (("--epochs", "notes"), "expected DOMAIN=NUMBER with a number 0 or more"),
        (("--epochs", "notes=nan"), "expected DOMAIN=NUMBER"),
        (("--proportion", "web=1.5"), "with a number from 0 to 1"),
        (("--epochs", "web=1", "--proportion", "web=0.5"), "domain web already has a weight"),
    ],
)
def test_wrong_weights_are_one_sentence_and_leave_nothing(
    two_domains: Corpus,
    run_cli: Callable[..., tuple[int, str, str]],
    flags: tuple[str, ...],
    message: str,
) -> None:
    code, _, error = run_cli("pack", two_domains.folder, "--seq-len", 32, *flags)
    assert code == 2
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(two_domains.folder.glob("*pack-32*"))
