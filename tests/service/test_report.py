"""The page of a finished job: what it counts is what the tables hold, and nothing in it is live."""

from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

from ops.report import LARGEST, SCORE_BINS, TRACK_POINTS, gather_report
from tests.crash.harness import Service, digests
from tests.service.conftest import FIXTURES
from tests.service.shell import Shell, names, refused
from tests.unit.output_fixtures import JOB, run_job

Finished = tuple[str, Path]
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Checks that elements are closed in order, and keeps what a reader sees."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def rows(out: Path, name: str) -> list[dict[str, str]]:
    with (out / name).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_report(service: Service, tmp_path: Path) -> None:
    # Given a finished job with a record whose name would be markup
    fasta, out = tmp_path / "x.fa", tmp_path / "out"
    evil = "<script>alert(1)</script>&amp;"
    genome = (FIXTURES / "virus_phiX174.fa").read_text().partition("\n")[2]
    fasta.write_text(f">{evil}\n{genome}>empty\n")
    service.wait(service.submit(fasta, out, FIXTURES / "virus_influenzaA_PR8.fa"))
    before = digests(out)
    # When its report is made
    done = service.vnp("report", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(out / "report.html"), str(out / "vnp_mqc.tsv")]
    page = Page()
    text = (out / "report.html").read_text()
    page.feed(text)
    # Then it is well-formed, needs no script and no network, and shows the name as it is
    assert page.open == []
    assert "script" not in page.tags
    assert not re.search(r"(?:src|href)=|url\(|@import", text)
    assert any(evil in words for words in page.text)
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ET.fromstring(svg)
    # And the job's own files are as they were
    ours = {"report.html", "vnp_mqc.tsv"}
    assert {k: v for k, v in digests(out).items() if k not in ours} == before
    assert service.vnp("verify", out).returncode == 0
    # And MultiQC finds what it looks for
    lines = (out / "vnp_mqc.tsv").read_text().splitlines()
    assert "# plot_type: table" in lines
    assert lines[-1].split("\t")[1] == str(len(rows(out, "sequences.tsv")))


def test_what_the_report_counts(finished: Finished) -> None:
    # Given a finished job; When its report is gathered
    _, out = finished
    report = gather_report(out)
    # Then every scored record and chunk is in its bin, once
    records = [r for r in rows(out, "sequences.tsv") if r["virus_score"] != "NA"]
    chunks = [float(c["virus_score"]) for c in rows(out, "chunks.tsv") if c["virus_score"] != "NA"]
    expected = [0] * SCORE_BINS
    for score in chunks:
        expected[min(int(score * SCORE_BINS), SCORE_BINS - 1)] += 1
    assert report.chunks == expected
    assert sum(report.records) == sum(map(sum, report.heat)) == len(records)
    # And the largest are the largest, with a place for each of their chunks
    lengths = sorted((int(r["length"]) for r in records), reverse=True)[:LARGEST]
    assert [track.length for track in report.tracks] == lengths
    top = report.tracks[0]
    assert top.name == "NC_001422.1"
    own = [c["virus_score"] for c in rows(out, "chunks.tsv") if c["seq_name"] == top.name]
    assert [s is None for s in top.scores] == [score == "NA" for score in own]
    assert len(own) < TRACK_POINTS


def test_report_of_other_jobs(service: Service, tmp_path: Path) -> None:
    # Given a protein job without a call, and a job without a record
    protein, empty = tmp_path / "p.fa", tmp_path / "e.fa"
    protein.write_text(">p\nMKLVE\n")
    empty.touch()
    for fasta, options in ((protein, ["--pipeline", "protein"]), (empty, [])):
        out = tmp_path / fasta.stem
        service.wait(service.submit(fasta, out, *options))
        # Then there is a page all the same
        assert service.vnp("report", out).returncode == 0
        Page().feed((out / "report.html").read_text())
    # And not of a folder that is none
    assert service.vnp("report", tmp_path).returncode == 66


def test_report_into_a_folder(shell: Shell) -> None:
    # Given a finished job, in a folder that is not ours to write into
    out, mine = shell.folder / "out", shell.folder / "a" / "mine"
    run_job(out, JOB)
    before = names(out)
    # When its report is made elsewhere; Then it lies there, and only there
    done = shell("vnp", "report", out, "--into", mine)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(mine / "report.html"), str(mine / "vnp_mqc.tsv")]
    assert names(mine) == ["report.html", "vnp_mqc.tsv"]
    assert names(out) == before
    # And what cannot be written is told in one line
    (shell.folder / "file").touch()
    refused(shell("vnp", "report", out, "--into", "file"), 73, "file cannot be written", "folder")
    (out / "report.html").mkdir()
    refused(shell("vnp", "report", out), 73, "--into names another", "cannot be written")
