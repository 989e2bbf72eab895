"""`watch`: a page that follows its run, for readers of any number."""

from __future__ import annotations

import json
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.browser import built_page, seen_in_frame
from tests.training.report_runs import write_run
from training.__main__ import main
from training.reports.live import LiveReport, make_server


@contextmanager
def served(report: LiveReport) -> Iterator[str]:
    with make_server(report, host="127.0.0.1", port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:  # also of a test that is skipped: it would ask a closed socket without an end
            server.shutdown()
            thread.join()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read().decode())


def add_evaluation(run_dir: Path, *, epoch: int, loss: float) -> None:
    rows = (
        {"kind": "step", "step": 2 * epoch, "tokens": 200 * epoch, "epoch": epoch, "loss": loss},
        {"kind": "evaluation", "step": 2 * epoch, "epoch": epoch, "loss": loss},
    )
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_a_page_follows_its_run_and_writes_nothing_into_it(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with served(LiveReport([run_dir], every_seconds=10.0)) as url:
        first = get(f"{url}version")
        assert "Nothing to show yet" in get(url)  # a start that has not reached its first step
        run_dir.rmdir()
        write_run(run_dir, heldout=[3.0, 2.5])
        assert get(f"{url}version") != first
        assert "2.5000 nats" in get(url)
        second = get(f"{url}version")
        assert get(f"{url}version") == second
        assert second in get(url)  # of which a second reader gets what the first one got
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"{url}metrics.jsonl")
    assert [path.name for path in run_dir.iterdir()] == ["metrics.jsonl"]


class NewsAfterwards(LiveReport):
    """The run goes on when its page has been read for the first time."""

    has_been_read = False

    def page(self) -> str:
        text = super().page()
        if not self.has_been_read:
            self.has_been_read = True
            add_evaluation(self._run_dirs[0], epoch=2, loss=2.25)
        return text


def test_an_open_page_shows_what_came_after_it_was_opened(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", heldout=[3.0, 2.5])
    with served(NewsAfterwards([run_dir], every_seconds=0.5)) as url:
        page = built_page(url, folder=tmp_path, seconds=2.0)
    assert '<body data-refreshed="1">' in page
    assert re.search(r'<p id="live"[^>]*>live ', page)
    assert "2.2500 nats" in page


def test_a_phone_shows_the_whole_page_and_when_it_was_read(tmp_path: Path) -> None:
    name = "a_run_with_a_name_that_is_longer_than_the_line_of_a_phone"
    with served(
        LiveReport([write_run(tmp_path / name, heldout=[3.0, 2.5])], every_seconds=9)
    ) as url:
        seen = seen_in_frame(get(url), width=390, folder=tmp_path)
    assert (seen["live"], seen["overflow"], seen["wide"], seen["broken"]) == (1, 0, [], 0)
    assert seen["images"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "absent is not a folder"),
        (["{run}", "--every", "0"], "--every 0 is not a number of seconds above 0.1"),
        (["{run}", "--port", "{taken}"], "Address already in use; choose another one"),
        (["{run}", "--port", "70000"], "--port 70000: "),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with served(LiveReport([tmp_path], every_seconds=10.0)) as url:
        words = {"run": str(tmp_path), "taken": url.rstrip("/").rpartition(":")[2]}
        assert main(["watch", *(each.format(**words) for each in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_who_listens_everywhere_is_told_a_name_that_a_phone_can_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(server: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("socketserver.BaseServer.serve_forever", interrupt)
    for host, named in (("0.0.0.0", socket.gethostname()), ("127.0.0.1", "127.0.0.1")):
        assert main(["watch", str(tmp_path), "--host", host, "--port", "0"]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"http://{named}:") and "0.0.0.0" not in said
