"""pandas, polars and R read the tables with no option but the separator: same rows, columns, names
and scores, whatever the records are called."""

from __future__ import annotations

import csv
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

from ops.tables import escape
from tests.crash.harness import Service
from tests.service.conftest import FIXTURES

#: Headers' first words; the third last record is empty.
NAMES = (
    *(
        '"quoted"',
        "it's",
        '"open',
        "a,b;c",
        "#hash",
        "back\\slash\\n",
        "bell\x07",
        "vírus-β",
        "100%",
    ),
    *("NA", "nan", "null", "None", "007", "1e5", "-3.5", "TRUE", "gi|1|gb|X.1|", "=1+1", "twice"),
    *("empty", "twice", "last"),
)
TABLES = ("sequences", "chunks")


@dataclass(frozen=True)
class Read:
    """What a program found in a table. scores: NaN where there is none."""

    columns: list[str]
    names: list[str]
    scores: list[float]


@pytest.fixture(scope="module")
def out(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a job of records with awkward names, exported as Parquet, too."""
    folder = tmp_path_factory.mktemp("awkward")
    genome = "".join((FIXTURES / "virus_phiX174.fa").read_text().splitlines()[1:])
    records = (
        f">{name} and more\n{'' if name == 'empty' else genome[150 * i : 150 * i + 900]}\n"
        for i, name in enumerate(NAMES)
    )
    (folder / "x.fa").write_text("".join(records), encoding="utf-8")
    service.wait(service.submit(folder / "x.fa", folder / "out"))
    assert service.vnp("export", folder / "out", "--to", "parquet").returncode == 0
    return folder / "out"


def expected(path: Path) -> Read:
    """The table as it stands, by the standard library, with quotes switched off."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        columns, *cells = list(rows)
    at = columns.index("virus_score")
    scores = [math.nan if row[at] == "NA" else float(row[at]) for row in cells]
    return Read(columns, [row[0] for row in cells], scores)


def require_same(found: Read, path: Path, tolerance: float = 0.0) -> None:
    told = expected(path)
    assert found.columns == told.columns
    assert found.names == told.names
    assert len(found.scores) == len(told.scores)
    for ours, theirs in zip(told.scores, found.scores, strict=True):
        same = math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=0.0)
        assert same or (math.isnan(ours) and math.isnan(theirs))


def of_pandas(frame: Any) -> Read:
    scores = [float(score) for score in frame["virus_score"]]
    return Read(list(frame.columns), frame["seq_name"].tolist(), scores)


def of_polars(frame: pl.DataFrame) -> Read:
    scores = [math.nan if score is None else score for score in frame["virus_score"]]
    return Read(frame.columns, frame["seq_name"].to_list(), scores)


def test_every_record_is_in_the_tables(out: Path) -> None:
    told = expected(out / "sequences.tsv")
    assert told.names == [escape(name) for name in NAMES]
    assert sum(map(math.isnan, told.scores)) in range(1, len(NAMES) - 5)
    assert set(expected(out / "chunks.tsv").names) == {escape(n) for n in NAMES if n != "empty"}


@pytest.mark.parametrize("table", TABLES)
def test_pandas(out: Path, table: str) -> None:
    path = out / f"{table}.tsv"
    require_same(of_pandas(pd.read_csv(path, sep="\t")), path)
    require_same(of_pandas(pd.read_parquet(out / "export" / f"{table}.parquet")), path)


@pytest.mark.parametrize("table", TABLES)
def test_polars(out: Path, table: str) -> None:
    path = out / f"{table}.tsv"
    require_same(of_polars(pl.read_csv(path, separator="\t", null_values="NA")), path)
    require_same(of_polars(pl.read_parquet(out / "export" / f"{table}.parquet")), path)


R_SCRIPT = r"""
table <- read.delim(commandArgs(trailingOnly = TRUE))
cat(colnames(table), sep = "\t"); cat("\n")
cat(sprintf("%s\t%.17g\n", table$seq_name, table$virus_score), sep = "")
"""


@pytest.mark.parametrize("table", TABLES)
def test_r(out: Path, table: str) -> None:
    if shutil.which("Rscript") is None:
        pytest.skip("Rscript is not on PATH; apt-get install r-base-core")
    path = out / f"{table}.tsv"
    done = subprocess.run(
        ["Rscript", "--vanilla", "-e", R_SCRIPT, path],
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    header, *lines = done.stdout.removesuffix("\n").split("\n")
    cells = [line.split("\t") for line in lines]
    scores = [math.nan if score == "NA" else float(score) for _, score in cells]
    # R reads decimals with long double arithmetic, which may round the last bit otherwise
    require_same(Read(header.split("\t"), [name for name, _ in cells], scores), path, 2**-52)


@pytest.mark.parametrize("readers", [(pd.read_parquet, of_pandas), (pl.read_parquet, of_polars)])
def test_names_are_the_same_in_all_parquet_files(
    out: Path, readers: Sequence[Callable[..., Any]]
) -> None:
    names = [readers[1](readers[0](out / "export" / f"{t}.parquet")).names for t in TABLES]
    assert set(names[1]) < set(names[0])
