"""The labelled genomes that vnp-small is trained on, as `vnp train` takes them.

    python -m tools.genomes FOLDER --out DIR

FOLDER holds manifest.tsv, splits.tsv and one folder of .fa.xz files per label (virus, cellular,
plasmid). DIR gets virus.fa, other.fa, labels.tsv (id, group, split) and sources.tsv, the list of
records used. Records of repositories with non-commercial terms are left out unless their id is an
INSDC or RefSeq accession: the sequence is then a public record.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import lzma
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ACCESSION = re.compile(r"([A-Z]{2}_)?[A-Z]{0,6}[0-9]{5,}(\.[0-9]+)?(:[0-9]+-[0-9]+)?")
NON_COMMERCIAL = "USC-RL"
#: Whole groups moved from training to validation: what is chosen is chosen for the unseen.
HELD_OUT_VALID = "heldout_valid"
VALID_GROUPS = {
    "Alphaflexiviridae",
    "Arenaviridae",
    "Caudoviricetes_NA_Vibrio",
    "Herelleviridae",
    "Lipothrixviridae",
    "Peduoviridae",
    "Pneumoviridae",
    "Polyomaviridae",
    "Schitoviridae",
    "Secoviridae",
    "Smacoviridae",
    "Togaviridae_sl",
    "Archaea_Methanobacteriota",
    "Thermodesulfobacteriota",
    "Verrucomicrobiota",
    "plasmid_of_Actinomycetota",
}
COLUMNS = ("id", "label", "group", "split", "note", "length", "sha256", "source", "licence")


@dataclass(frozen=True)
class Genome:
    """One record: a genome, a segment, or a window of a chromosome. letters: upper case."""

    id: str
    label: str  # virus, cellular or plasmid
    group: str
    split: str  # train, valid or test
    note: str
    sha256: str
    source: str
    licence: str
    letters: bytes

    @property
    def is_virus(self) -> bool:
        return self.label == "virus"


def read_genomes(folder: Path, splits: Sequence[str] = ("train", "valid", "test")) -> list[Genome]:
    """The usable genomes of those splits, ordered by id; their digests are checked."""
    splits_of = {row["id"]: row for row in _table(folder / "splits.tsv")}
    rows = {row["id"]: row for row in _table(folder / "manifest.tsv") if _usable(row)}
    files = sorted(folder.glob("*/*.fa.xz"))
    with ThreadPoolExecutor() as pool:  # lzma lets other threads run
        records = [record for part in pool.map(_records, files) for record in part]
    genomes = [
        _genome(rows[name], splits_of[name], letters)
        for name, letters in records
        if name in rows and splits_of[name]["split"] in splits
    ]
    return sorted(genomes, key=lambda genome: genome.id)


def _usable(row: dict[str, str]) -> bool:
    return NON_COMMERCIAL not in row["licence"] or ACCESSION.fullmatch(row["id"]) is not None


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def _records(path: Path) -> list[tuple[str, bytes]]:
    text = lzma.decompress(path.read_bytes())
    records = (record.partition(b"\n") for record in text.split(b">")[1:])
    return [(head.split(b"|")[0].decode(), body.replace(b"\n", b"")) for head, _, body in records]


def _genome(row: dict[str, str], split: dict[str, str], letters: bytes) -> Genome:
    if hashlib.sha256(letters).hexdigest() != row["sha256"]:
        raise SystemExit(f"genomes: {row['id']} is not the sequence of the manifest")
    held_out = row["group"] in VALID_GROUPS and split["split"] != "test"
    return Genome(
        id=row["id"],
        label=row["label"],
        group=row["group"],
        split="valid" if held_out else split["split"],
        note=HELD_OUT_VALID if held_out else split["note"],
        sha256=row["sha256"],
        source=row["source_repo"],
        licence=row["licence"],
        letters=letters,
    )


def digest(genomes: Sequence[Genome]) -> str:
    """sha256 over ids, labels, groups, splits and sequences: which data a model has seen."""
    total = hashlib.sha256()
    for genome in genomes:
        fields = (genome.id, genome.label, genome.group, genome.split, genome.sha256)
        total.update("\t".join(fields).encode() + b"\n")
    return total.hexdigest()


def write(genomes: Sequence[Genome], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, virus in (("virus.fa", True), ("other.fa", False)):
        with (out / name).open("wb") as stream:
            for genome in genomes:
                if genome.is_virus == virus:
                    stream.write(b">" + genome.id.encode() + b"\n" + genome.letters + b"\n")
    rows = ((g.id, g.group, g.split) for g in genomes)
    _write_table(out / "labels.tsv", ("id", "group", "split"), rows)
    _write_table(out / "sources.tsv", COLUMNS, map(_source, genomes))


def _source(genome: Genome) -> tuple[str, ...]:
    g = genome
    length = str(len(g.letters))
    return (g.id, g.label, g.group, g.split, g.note, length, g.sha256, g.source, g.licence)


def _write_table(path: Path, header: Sequence[str], rows: Iterator[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for row in (header, *rows):
            stream.write("\t".join(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    genomes = read_genomes(arguments.folder)
    write(genomes, arguments.out)
    print(f"{len(genomes)} genomes, {digest(genomes)}", file=sys.stderr)


if __name__ == "__main__":
    main()
