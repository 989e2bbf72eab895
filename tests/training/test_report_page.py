from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.browser import framed, picture, seen_in_frame, share_of_colour
from tests.training.report_runs import write_seeds
from training.reports.report import write_report


@pytest.fixture(scope="module")
def compared_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two groups of two seeds with names that a line of a phone does not hold."""
    folder = tmp_path_factory.mktemp("compared")
    long_name = "a_regulariser_with_a_name_that_is_longer_than_the_line_of_a_phone"
    runs = write_seeds(folder, "none", {1: 2.6, 2: 2.7}) + write_seeds(
        folder, long_name, {1: 2.2, 2: 2.4}
    )
    return write_report(runs, folder / "report")


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_a_phone_and_a_desk_and_all_its_pictures_load(
    compared_page: Path, tmp_path: Path, width: int
) -> None:
    seen = seen_in_frame(compared_page.read_text("utf-8"), width=width, folder=tmp_path)
    assert seen["overflow"] == 0
    assert seen["wide"] == []
    assert seen["images"] == 7
    assert seen["broken"] == 0
    assert seen["fetched"] == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_light_or_dark_as_the_reader_likes(
    compared_page: Path, tmp_path: Path, width: int
) -> None:
    frame = framed(compared_page.read_text("utf-8"), width=width, folder=tmp_path)
    for is_dark, page, card in ((False, "#f6f8fa", "#ffffff"), (True, "#0d1117", "#161b22")):
        image = picture(
            frame, folder=tmp_path, width=max(width, 500), height=3000, is_dark=is_dark
        )[:900, :width]
        assert share_of_colour(image, page) > 0.05
        assert share_of_colour(image, card) > 0.3


@pytest.mark.slow
def test_the_browser_has_nothing_to_complain_of(compared_page: Path, tmp_path: Path) -> None:
    assert console_messages(compared_page, folder=tmp_path) == []
    broken = tmp_path / "broken.html"
    broken.write_text("<script>console.error('as it is said')</script>")
    (message,) = console_messages(broken, folder=tmp_path)
    assert "as it is said" in message


def console_messages(page: Path, *, folder: Path) -> list[str]:
    """What the browser writes to its console while it loads a page."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if browser is None:
        pytest.skip("needs Chromium")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    profile = f"--user-data-dir={folder / 'console'}"
    done = subprocess.run(
        [browser, *flags, profile, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]
