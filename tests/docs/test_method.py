"""The example of docs/method.md trains as it stands, with the method and torch alone."""

from __future__ import annotations

from tests.docs.markdown import REPO_ROOT, code_blocks


def test_the_example_loop_runs_and_learns_its_data() -> None:
    (example,) = code_blocks(REPO_ROOT / "docs" / "method.md", "python")
    imported = [line for line in example.splitlines() if line.startswith(("import", "from"))]
    assert all(line.startswith(("import torch", "from training.entrodrop.")) for line in imported)
    after: dict[str, object] = {}
    exec(compile(example, "method.md", "exec"), after)
    before: dict[str, object] = {}
    exec(compile(example.replace("8, 20\n", "8, 1\n"), "method.md", "exec"), before)
    assert after["loss"].item() < 0.8 * before["loss"].item()  # type: ignore[attr-defined]
    assert after["dropped"].any()  # type: ignore[attr-defined]
