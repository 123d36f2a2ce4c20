"""The report as a reader sees it: in a headless Chromium, without scripts, wide and narrow."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ops.report_html import OTHERS, VIRUS
from tests.crash.harness import Service
from tests.service.conftest import FIXTURES

#: Of a name and a path without a place to break; the page has to live with both.
LONG_NAME = "NODE_1_length_48502_cov_12.3456_of_an_assembler_that_says_it_all|gi|2837465|ref|X.1"
#: Chromium does without its sandbox as root and in containers; the page is ours.
CHROMIUM = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
#: Else a frame is painted by a process of its own, now and then after the picture was taken.
ONE_PROCESS = "--disable-features=IsolateSandboxedIframes"
MARGIN = 12  # pixels at the right that a page of this padding leaves white
WIDTHS = (1000, 400)


@pytest.fixture(scope="module")
def report(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small job of phages, a plant and records that are not called."""
    folder = tmp_path_factory.mktemp("report")
    lambda_phage = (FIXTURES / "virus_lambda.fa").read_text().partition("\n")[2]
    fasta = folder / f"{'x' * 90}.fa"
    fasta.write_text(f">{LONG_NAME}\n{lambda_phage}>empty\n>short\nAC\n")
    others = (FIXTURES / f"{name}.fa" for name in ("virus_phiX174", "virus_SAOMS1"))
    service.wait(service.submit(fasta, folder / "out", *others))
    assert service.vnp("report", folder / "out").returncode == 0
    return folder / "out" / "report.html"


def picture(page: Path, folder: Path, width: int, height: int, part: str = "") -> NDArray[np.uint8]:
    """(height, width, 3) pixels of a page, or from one of its parts on; scripts are off.

    In a frame that allows no scripts, since windows are no narrower than 500 pixels.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not on PATH; apt-get install chromium")
    frame, taken = folder / "frame.html", folder / "taken.png"
    frame.write_text(
        "<!DOCTYPE html><style>body{margin:0}iframe{border:0;display:block}</style>"
        f"<iframe sandbox src='{page.as_uri()}{part}' width={width} height={height}></iframe>"
    )
    size = f"--window-size={max(width, 500)},{height}"
    profile = f"--user-data-dir={folder / 'profile'}"
    subprocess.run(
        [chromium, *CHROMIUM, ONE_PROCESS, profile, size, f"--screenshot={taken}", frame.as_uri()],
        env={**os.environ, "HOME": str(folder)},
        capture_output=True,
        timeout=300,
        check=True,
    )
    with Image.open(taken) as image:
        assert image.format == "PNG"
        assert image.size == (max(width, 500), height)
        return np.asarray(image.convert("RGB"))[:, :width]


def count(pixels: NDArray[np.uint8], colour: str) -> int:
    """Pixels of a colour, #rrggbb."""
    return int((pixels == list(bytes.fromhex(colour[1:]))).all(axis=2).sum())


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_off(report: Path, tmp_path: Path, width: int) -> None:
    pixels = picture(report, tmp_path, width, 3_200)
    # Then the margin at the right is white from top to end, and the page before it is not
    assert (pixels[:, width - MARGIN :] == 255).all()
    assert (pixels[:, :-MARGIN] != 255).any(axis=2).sum() > 10_000
    assert min(count(pixels, VIRUS), count(pixels, OTHERS)) > 500
    # And it is no empty end that is looked at: something is written in every 400 pixels
    for top in range(0, 2_000, 400):
        assert (pixels[top : top + 400] != 255).any()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("part", "height"),
    [("records", 250), ("chunks", 250), ("lengths", 250), ("largest", 300)],
)
def test_charts_are_drawn(report: Path, tmp_path: Path, width: int, part: str, height: int) -> None:
    pixels = picture(report, tmp_path, width, height, f"#{part}")
    # Then both kinds of call have their colour in it, as areas, and words stand beside them
    assert min(count(pixels, VIRUS), count(pixels, OTHERS)) >= 10, part
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    assert (pixels == 255).all(axis=2).mean() > 0.5


def test_a_page_without_charts_would_be_noticed(report: Path, tmp_path: Path) -> None:
    # Given the page without its charts; When looked at; Then the colour of calls is gone
    bare = tmp_path / "bare.html"
    bare.write_text(report.read_text().replace("<rect", "<nothing"))
    pixels = picture(bare, tmp_path, 1000, 2_000)
    assert count(pixels, VIRUS) == 0  # the line of rows over time has the colour of the others
    assert (pixels != 255).any()
