"""Labelled genomes: read, checked, and split by genome and group before anything is computed.

A split by fragment would put overlapping pieces of one genome on both sides and inflate every
figure; here a whole record, and without given splits a whole group, is on one side only.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ops.errors import DataError, NoInputError, UsageError
from ops.fasta import read_inputs

SPLITS = ("train", "valid", "test")
#: Shares of each class's bases that go to validation and test when no splits are given.
SHARES = {"test": 0.15, "valid": 0.15}
MIN_GENOMES = {"train": 3, "valid": 1, "test": 1}
_U_TO_T = bytes.maketrans(b"U", b"T")


@dataclass(frozen=True)
class Genome:
    """One record with what is known of it. letters: upper-case bases, U read as T."""

    name: str
    virus: bool
    group: str
    split: str  # one of SPLITS, or "" before it is assigned
    letters: bytes

    @property
    def label(self) -> str:
        return "virus" if self.virus else "other"


def read_labelled(
    virus: Sequence[Path], other: Sequence[Path], labels: Path | None, seed: int
) -> list[Genome]:
    """All records of both classes with groups and splits, in the order of the files.

    labels: a table with the columns id, and any of group and split. Without groups every record is
    a group of its own; without splits groups are assigned at random, given the seed. Raises
    NoInputError, DataError and UsageError, one line each, before any long work.
    """
    genomes = [*_read(virus, True), *_read(other, False)]
    _check_names(genomes)
    genomes = _label(genomes, labels) if labels else genomes
    if not any(genome.split for genome in genomes):
        genomes = assign_splits(genomes, seed)
    check_counts(genomes)
    return genomes


def _read(paths: Sequence[Path], virus: bool) -> Iterable[Genome]:
    parts: list[bytes] = []
    for piece in read_inputs(paths, "nucleotide"):
        parts.append(piece.letters.translate(_U_TO_T))
        if piece.last:
            yield Genome(piece.name, virus, piece.name, "", b"".join(parts))
            parts.clear()


def _check_names(genomes: Sequence[Genome]) -> None:
    labels: dict[str, str] = {}
    for genome in genomes:
        known = labels.setdefault(genome.name, genome.label)
        if known != genome.label:
            raise DataError(f"{genome.name} is among both --virus and --other; remove it from one")
    doubled = [name for name, count in Counter(g.name for g in genomes).items() if count > 1]
    if doubled:
        raise DataError(f"{doubled[0]} is there {_times(len(doubled))}; every record needs its id")


def _times(count: int) -> str:
    return "more than once" if count == 1 else f"more than once, as are {count - 1} other ids"


def _label(genomes: Sequence[Genome], labels: Path) -> list[Genome]:
    rows = _read_labels(labels)
    unknown = sorted(set(rows) - {genome.name for genome in genomes})
    if unknown:
        raise DataError(
            f"{labels} names {len(unknown)} ids that no FASTA record has, such as {unknown[0]}; "
            "correct or remove them"
        )
    missing = next((g.name for g in genomes if g.name not in rows), None)
    if missing is not None:
        raise DataError(f"{labels} has no line for {missing}; add it, or remove the record")
    return [replace(g, group=rows[g.name][0] or g.name, split=rows[g.name][1]) for g in genomes]


def _read_labels(path: Path) -> dict[str, tuple[str, str]]:
    """id -> (group, split); either may be empty."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            table = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            if "id" not in (table.fieldnames or ()):
                raise DataError(
                    f"{path} has no column id; its columns are tab-separated: id, group, split"
                )
            rows: dict[str, tuple[str, str]] = {}
            for number, row in enumerate(table, 2):
                split = row.get("split") or ""
                if split and split not in SPLITS:
                    raise DataError(f"{path}:{number}: split {split!r} is not train, valid or test")
                if row["id"] in rows:
                    raise DataError(f"{path}:{number}: {row['id']} has a line already")
                rows[row["id"]] = (row.get("group") or "", split)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason}") from error
    except OSError as error:
        raise NoInputError(f"{path} cannot be read: {error.strerror}") from error
    if any(s for _, s in rows.values()) and not all(s for _, s in rows.values()):
        name = next(name for name, (_, split) in rows.items() if not split)
        raise DataError(f"{path} gives splits, but none to {name}; give one to all or to none")
    return rows


def assign_splits(genomes: Sequence[Genome], seed: int) -> list[Genome]:
    """Whole groups of each class, at random, to test and validation until each has its share."""
    split_of: dict[tuple[bool, str], str] = {}
    for virus in (True, False):
        bases: dict[str, int] = defaultdict(int)
        for genome in genomes:
            if genome.virus == virus:
                bases[genome.group] += len(genome.letters)
        names = sorted(bases)
        order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
        total = sum(bases.values())
        for split, share in SHARES.items():
            taken = 0
            while order and taken < share * total:
                name = order.pop()
                split_of[virus, name] = split
                taken += bases[name]
    return [replace(g, split=split_of.get((g.virus, g.group), "train")) for g in genomes]


def check_counts(genomes: Sequence[Genome]) -> None:
    """UsageError unless both classes have enough genomes in every split."""
    counts = Counter((genome.label, genome.split) for genome in genomes)
    for label in ("virus", "other"):
        for split, least in MIN_GENOMES.items():
            if counts[label, split] < least:
                raise UsageError(
                    f"{counts[label, split]} genomes of class {label} for {split}, where at least "
                    f"{least} are needed; give more --{label} records (a group is never divided)"
                )


def data_digest(genomes: Iterable[Genome]) -> str:
    """sha256 over what was trained and measured on: names, classes, groups, splits, sequences."""
    total = hashlib.sha256()
    for genome in sorted(genomes, key=lambda g: g.name):
        fields = (genome.name, genome.label, genome.group, genome.split)
        total.update("\t".join(fields).encode() + b"\t")
        total.update(hashlib.sha256(genome.letters).digest())
    return f"sha256:{total.hexdigest()}"
