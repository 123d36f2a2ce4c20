"""Accounts, results and whole jobs as packers and gpu workers hand them on, small and synthetic."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ops.gather import ShardGather
from ops.identity import Identity
from ops.jobs import InputFile, JobSpec, Plan
from ops.nouns import Account, BatchResult, Ragged, Status
from ops.output import Output

IDENTITY = Identity(
    pipeline="virus",
    chunk_length=300,
    esm2="sha256:" + "e" * 64,
    dnabert_s="sha256:" + "d" * 64,
    classifier="sha256:" + "c" * 64,
    esm2_name="tiny-esm2",
    dnabert_s_name="tiny-dnabert",
    classifier_name="tiny-classifier",
    trained=False,
)
PROTEIN = replace(
    IDENTITY,
    pipeline="protein",
    chunk_length=0,
    dnabert_s=None,
    classifier=None,
    dnabert_s_name=None,
    classifier_name=None,
)
NUMERICS = "0123456789abcdef"
CHUNK = 300
#: A chunk of a record: the frames that are open in it (1 to 6), or why there are none.
Chunk = Sequence[int] | Status


@dataclass(frozen=True)
class Record:
    """A record, or the part of one from chunk `first` on that a shard holds."""

    ordinal: int
    name: str
    chunks: Sequence[Chunk] = ()
    first: int = 0
    num_chunks: int | None = None  # of the whole record; None: all of them are here
    status: Status = Status.OK
    length: int | None = None
    uracil: int = 0
    ambiguous: int = 0

    @property
    def whole(self) -> int:
        return len(self.chunks) if self.num_chunks is None else self.num_chunks


def make_account(
    shard: int, records: Sequence[Record], identity: Identity = IDENTITY, job: str = "job1"
) -> Account:
    """The account of a shard that holds these records."""
    chunks = [(r, r.first + i, c) for r in records for i, c in enumerate(r.chunks)]
    rows = [(r.ordinal, i, f) for r, i, c in chunks if not isinstance(c, Status) for f in c]
    lengths = [CHUNK * r.whole if r.length is None else r.length for r in records]
    return Account(
        job=job,
        shard=shard,
        identity=identity.digest,
        record=np.array([r.ordinal for r in records], np.uint64),
        name=Ragged.from_bytes(r.name.encode() for r in records),
        length=np.array(lengths, np.uint64),
        num_chunks=np.array([r.whole for r in records], np.uint32),
        first_chunk=np.array([r.first for r in records], np.uint32),
        stop_chunk=np.array([r.first + len(r.chunks) for r in records], np.uint32),
        record_status=np.array([r.status for r in records], np.uint8),
        num_ambiguous=np.array([r.ambiguous for r in records], np.uint64),
        num_uracil=np.array([r.uracil for r in records], np.uint64),
        chunk_record=np.array([r.ordinal for r, _, _ in chunks], np.uint64),
        chunk=np.array([i for _, i, _ in chunks], np.uint32),
        start=np.array([CHUNK * i + 1 for _, i, _ in chunks], np.uint64),
        end=np.array([CHUNK * (i + 1) for _, i, _ in chunks], np.uint64),
        chunk_status=np.array(
            [c if isinstance(c, Status) else Status.OK for _, _, c in chunks], np.uint8
        ),
        num_frames=np.array(
            [0 if isinstance(c, Status) else len(c) for _, _, c in chunks], np.uint8
        ),
        row_record=np.array([key[0] for key in rows], np.uint64),
        row_chunk=np.array([key[1] for key in rows], np.uint32),
        row_frame=np.array([key[2] for key in rows], np.uint8),
        row_digest=np.array([digest(*key) for key in rows], np.uint64),
        row_same=np.arange(len(rows), dtype=np.uint32),
    )


def digest(record: int, chunk: int, frame: int) -> int:
    """Any number that differs between keys."""
    return (record * 1_000_003 + chunk) * 7 + frame


def scores_of(record: np.ndarray, chunk: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """(P(others), P(virus)) float32: a function of the key alone, as with real models."""
    seeds = zip(record.tolist(), chunk.tolist(), frame.tolist(), strict=True)
    virus = [np.random.default_rng(seed).random() for seed in seeds]
    pairs = [(1 - value, value) for value in virus]
    return np.array(pairs, np.float32).reshape(-1, 2)


def make_result(
    account: Account, rows: Sequence[int] | np.ndarray, width: int = 0, failed: Sequence[int] = ()
) -> BatchResult:
    """What a gpu worker gives for some rows of an account, in the order asked for.

    width: of both embeddings, 0 for none; failed: rows (of the account) that were condemned.
    """
    at = np.asarray(rows, np.int64)
    record, chunk, frame = account.row_record[at], account.row_chunk[at], account.row_frame[at]
    bad = np.isin(at, list(failed))
    scores = scores_of(record, chunk, frame)
    scores[bad] = np.nan
    noise = scores[:, :1] * np.arange(1, width + 1, dtype=np.float32)
    return BatchResult(
        job=account.job,
        shard=account.shard,
        number=0,
        identity=account.identity,
        numerics=NUMERICS,
        record=record,
        chunk=chunk,
        frame=frame,
        digest=account.row_digest[at],
        dtype=np.zeros(len(at), np.uint8),
        status=np.where(bad, Status.FAILED, Status.OK).astype(np.uint8),
        scores=scores,
        esm2=noise if width else None,
        dnabert_s=-noise if width else None,
        reasons=tuple(f"row {row}: device-side assert" for row in at[bad].tolist()),
    )


def gathered(
    account: Account, width: int = 0, failed: Sequence[int] = (), batch: int = 7
) -> ShardGather:
    """A complete shard, its rows in batches of `batch`."""
    gather = ShardGather(account.job, account.shard)
    gather.add(account)
    for start in range(0, len(account.row_record), batch):
        stop = min(start + batch, len(account.row_record))
        gather.add(make_result(account, range(start, stop), width, failed))
    return gather


#: A job of four shards: odd records, many chunks, one record over two shards, duplicate names.
JOB: list[list[Record]] = [
    [
        Record(0, "first", [[1, 4], Status.NO_OPEN_FRAME, [2], [3, 5, 6]], uracil=3),
        Record(1, "empty", status=Status.EMPTY, length=0),
        Record(2, "short", status=Status.TOO_SHORT, length=2),
    ],
    [Record(3, "huge", [[1], [2, 3], Status.AMBIGUOUS], 0, 5, ambiguous=12)],
    [Record(3, "huge", [[4, 5, 6], [1]], 3, 5, ambiguous=1)],
    [
        Record(4, "twice", [[1, 2, 3]]),
        Record(5, "twice", [[1], [6]]),
        Record(6, "closed", [Status.NO_OPEN_FRAME, Status.NO_OPEN_FRAME]),
        Record(7, "unknown", [Status.NO_OPEN_FRAME, Status.AMBIGUOUS]),
    ],
]


def make_spec(out: Path, identity: Identity = IDENTITY, **options: object) -> JobSpec:
    values = {"id": "job1", "inputs": (InputFile("/data/in.fa", 10, 20),), "out": str(out)}
    return JobSpec(**{**values, "identity": identity, **options})  # type: ignore[arg-type]


def make_plan(job: Sequence[Sequence[Record]], digest: str = "sha256:1234") -> Plan:
    records = {r.ordinal: r for shard in job for r in shard}
    return Plan(
        records=len(records),
        letters=sum(CHUNK * r.whole if r.length is None else r.length for r in records.values()),
        chunks=sum(r.whole for r in records.values()),
        shards=len(job),
        input_digest=digest,
    )


@dataclass(frozen=True)
class Piece:
    """As ops.fasta delivers records: in one or more pieces."""

    ordinal: int
    name: str
    letters: bytes
    last: bool
    description: str = ""


def letters_of(record: Record) -> bytes:
    length = CHUNK * record.whole if record.length is None else record.length
    return (b"ACGTTGCA" * (length // 8 + 1))[:length]


def read_records(job: Sequence[Sequence[Record]], piece: int = 77) -> Iterator[Piece]:
    """The job's input once more, in pieces of `piece` letters."""
    for record in {r.ordinal: r for shard in job for r in shard}.values():
        letters = letters_of(record)
        starts = range(0, max(1, len(letters)), piece)
        for start in starts:
            last = start + piece >= len(letters)
            yield Piece(record.ordinal, record.name, letters[start : start + piece], last)


def run_job(
    out: Path, job: Sequence[Sequence[Record]], width: int = 0, **options: object
) -> Output:
    """Commits what is missing of a job, and finishes it; the output is closed."""
    output = Output.open(out, make_spec(out, **options), make_plan(job))
    for shard, records in enumerate(job):
        if shard not in output.committed:
            output.commit(gathered(make_account(shard, records), width))
    output.finish(lambda: read_records(job))
    output.close()
    return output


PLAN = make_plan(JOB)


def commit(output: Output, *shards: int) -> None:
    """Commits shards of JOB."""
    for shard in shards:
        output.commit(gathered(make_account(shard, JOB[shard])))


def open_job(out: Path, **options: object) -> Output:
    """Opens a folder for JOB."""
    return Output.open(out, make_spec(out, **options), PLAN)


def kill_once_it_says(word: str, code: str, out: Path) -> None:
    """Runs Python code on OUT in a process of its own; SIGKILL at the first line that begins so."""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(out)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith(word) for line in process.stdout)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
