"""The checks by name, in the order in which they run, each with what it verifies; no torch."""

from __future__ import annotations

from common.hints import did_you_mean

CHECKS = {
    "versions": "the same Python, packages, sources and recipe on every host",
    "devices": "what each process computes on, and whether others use it",
    "memory": "the planner's forecast against the free memory",
    "limits": "open files, locked memory, shared memory",
    "environment": "variables that slow a run down, hide its errors or name what does not exist",
    "caches": "home, TMPDIR and the Hugging Face cache: existing, writable, one's own",
    "names": "host names that resolve, and well-placed processes",
    "space": "room on disk for checkpoints and the export",
    "paths": "one run folder, corpus and model for all hosts",
    "disk": "speed of writing the run folder and of reading the corpus",
    "clocks": "clocks of the hosts against that of the first",
    "all-reduce": "bandwidth over all processes, and that sums are right",
    "all-to-all": "bandwidth in the groups that share sequences, and that results are right",
    "pairs": "bandwidth of every pair of hosts: which host or link is slow",
    "model": "heads that divide evenly, a vocabulary that covers the corpus, complete files",
    "tokenizer": "the corpus was tokenised for this model",
    "start": "all that a start of the run would refuse before weights exist",
    "contents": "checksums of all that is trained and evaluated on",
    "losses": "those of a tiny model of this family against plain transformers",
    "weights": "a tiny model of this family under ZeRO-3 has the weights that it should",
    "documents": "packed documents do not see each other, by the attention that trains",
    "gradients": "gradients of this layout against plain torch on one process",
}


def read_skipped(text: str) -> frozenset[str]:
    """The names in a text such as `disk,pairs`.

    Raises:
        ValueError: for an unknown name, with the nearest known ones.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in CHECKS:
            otherwise = f"valid: {', '.join(CHECKS)}"
            hint = did_you_mean(name, CHECKS, most=2, cutoff=0.4, otherwise=otherwise)
            raise ValueError(f"--skip: there is no check {name!r}{hint}")
    return frozenset(names)
