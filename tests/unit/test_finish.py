"""From FASTA to finished files, with scores that depend on the input only: the cut cannot tell."""

from __future__ import annotations

import gzip
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ops.cut import CutParams, cut_shards, plan_input
from ops.dna_tokens import DnaTokenizer
from ops.fasta import read_inputs
from ops.gather import ShardGather
from ops.jobs import Plan
from ops.modelstore import BUNDLED
from ops.nouns import Batch, BatchResult, Status
from ops.output import Output
from ops.packing import Budgets
from ops.prepare import prepare
from ops.tables import Counts
from ops.verify import verify_output
from tests.unit.output_fixtures import IDENTITY, NUMERICS, make_spec

TABLES = (
    "sequences.tsv",
    "chunks.tsv",
    "virus.fasta.gz",
    "compat/prediction_results.txt",
    "compat/prediction_results_highestscore.csv",
)


@pytest.fixture(scope="module")
def tokenizer() -> DnaTokenizer:
    return DnaTokenizer(BUNDLED / "vnp-small-dnabert" / "tokenizer.json")


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Odd records, duplicates, short ones and two that are huge for a small cut."""
    chance = random.Random(7)

    def letters(count: int, alphabet: str = "ACGT") -> str:
        return "".join(chance.choices(alphabet, k=count))

    records = [
        ("empty", ""),
        ("short", "AC"),
        ("unknown", "N" * 700),
        ("rna with a description", letters(800, "ACGU")),
        ("twice", letters(100)),
        ("huge", letters(30_000)),
        ("twice", letters(1000)),
        *((f"read_{i}", letters(150)) for i in range(60)),
        ("huge_too", letters(25_000, "ACGTACGTACGTN")),
    ]
    path = tmp_path_factory.mktemp("input") / "in.fa"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in records))
    return path


def fake_result(batch: Batch) -> BatchResult:
    """Scores from the digest of the row's input, as a model's depend on the input only."""
    virus = (batch.digest % np.uint64(1 << 20)).astype(np.float32) / np.float32(1 << 20)
    return BatchResult.of(
        batch,
        NUMERICS,
        dtype=np.zeros(len(virus), np.uint8),
        status=np.full(len(virus), Status.OK, np.uint8),
        scores=np.stack([1 - virus, virus], axis=1),
    )


def run(
    fasta: Path, out: Path, tokenizer: DnaTokenizer, shard_bases: int, uracil_as_t: bool = True
) -> tuple[Plan, Counts]:
    identity = replace(IDENTITY, uracil_as_t=uracil_as_t)
    params = CutParams(
        job="job1",
        identity=identity.digest,
        pipeline="virus",
        chunk_length=300,
        keep_embeddings=False,
        uracil_as_t=uracil_as_t,
        shard_bases=shard_bases,
    )
    scan = plan_input([fasta], params)
    for _ in scan:
        pass
    output = Output.open(out, make_spec(out, identity, compat=True), scan.result)
    for task in cut_shards([fasta], params, scan.result.huge_lengths):
        batches, account = prepare(task, tokenizer, Budgets(10_752, 10_752, 64), 8_192)
        gather = ShardGather("job1", task.shard)
        for batch in reversed(batches):
            gather.add(fake_result(batch))
        gather.add(account)
        output.commit(gather)
    counts = output.finish(lambda: read_inputs([fasta], "nucleotide"))
    output.close()
    return scan.result, counts


@pytest.mark.parametrize("shard_bases", [2_000, 10_000])
def test_cut_of_the_input_changes_no_byte_of_the_tables(
    fasta: Path, tmp_path: Path, tokenizer: DnaTokenizer, shard_bases: int
) -> None:
    # Given one input, cut into a single shard and into many
    whole, counts = run(fasta, tmp_path / "whole", tokenizer, 1 << 20)
    parts, part_counts = run(fasta, tmp_path / "parts", tokenizer, shard_bases)
    assert whole.shards == 1
    assert parts.shards >= 7
    # Then all tables are the same
    for name in TABLES:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    # And everything that the first reading has counted is there, once
    assert counts == part_counts
    assert (counts.records, counts.letters, counts.chunks) == (
        whole.records,
        whole.letters,
        whole.chunks,
    )
    assert (counts.ambiguous_letters, counts.uracil_letters) == (whole.ambiguous, whole.uracil)
    assert sum(counts.statuses.values()) == counts.records == 68
    assert verify_output(tmp_path / "parts").problems == []


def test_virus_fasta_has_the_input_s_letters(
    fasta: Path, tmp_path: Path, tokenizer: DnaTokenizer
) -> None:
    # When a job is finished
    _, counts = run(fasta, tmp_path, tokenizer, 5_000)
    # Then the called records, and they only, are there with their letters and headers
    table = (tmp_path / "sequences.tsv").read_text().splitlines()[1:]
    called = [line.split("\t")[2] == "virus" for line in table]
    records = fasta.read_text().split(">")[1:]
    expected = [record for record, is_virus in zip(records, called, strict=True) if is_virus]
    text = gzip.decompress((tmp_path / "virus.fasta.gz").read_bytes()).decode()
    found = [unwrapped(record) for record in text.split(">")[1:]]
    assert found == [unwrapped(record) for record in expected]
    assert len(found) == counts.viruses > 5


def unwrapped(record: str) -> tuple[str, str]:
    header, _, letters = record.partition("\n")
    return header, letters.replace("\n", "")


def test_original_treatment_of_uracil_is_noted(
    fasta: Path, tmp_path: Path, tokenizer: DnaTokenizer
) -> None:
    run(fasta, tmp_path, tokenizer, 1 << 20, uracil_as_t=False)
    [line] = [
        line
        for line in (tmp_path / "sequences.tsv").read_text().splitlines()
        if line.startswith("rna\t")
    ]
    assert "U kept; codons with U are deleted" in line
