"""FASTQ to FASTA, on the way: names and letters stay, qualities go.

Four lines a record, as every sequencer writes them: @name, letters, +, as many quality marks. Each
becomes a header, a line of letters and two blank lines, so that the FASTA reader, which sees only
these, still knows the line of whatever it refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ops.errors import DataError

#: The longest reads known have 4 million bases.
MAX_RECORD_BYTES = 256 << 20


def fastq_as_fasta(texts: Iterator[bytes], path: Path, line: int) -> Iterator[bytes]:
    """texts: LF only; the first starts with a record, in the given line of the file.

    Raises DataError, with file and line, for what is no FASTQ of four lines a record.
    """
    pending = b""
    for text in texts:
        pending += text
        lines = pending.split(b"\n")
        whole = len(lines) - 1 - (len(lines) - 1) % 4
        if whole:
            yield _convert(lines[:whole], path, line)
            line += whole
            pending = b"\n".join(lines[whole:])
        elif len(pending) > MAX_RECORD_BYTES:
            raise DataError(f"{path}, line {line}: a record of over 256 MiB; is this FASTQ?")
    rest = pending.rstrip(b"\n \t").split(b"\n")
    if rest == [b""]:
        return
    if len(rest) < 4 and rest[0].startswith(b"@") and len(rest) > 1 and not rest[1]:
        rest = pending.split(b"\n")  # the last record has no letters, and so no quality marks
    if len(rest) < 4:
        raise DataError(f"{path}, line {line}: the last record is cut off; fetch the file again")
    yield _convert(rest[:4], path, line)


def _convert(lines: list[bytes], path: Path, first: int) -> bytes:
    """FASTA of whole records, four lines each, the first of which is line `first` of the file."""
    out = []
    for at in range(0, len(lines), 4):
        header, letters, plus, marks = lines[at : at + 4]
        if header[:1] != b"@" or plus[:1] != b"+" or letters[:1] == b">":
            if not header.strip() and not any(line.strip() for line in lines[at:]):
                break
            raise DataError(
                f"{path}, line {first + at}: not a FASTQ record of four lines; "
                "convert it (seqtk seq -l0), or give FASTA"
            )
        if len(letters.strip()) != len(marks.strip()):
            raise DataError(
                f"{path}, line {first + at + 1}: {len(letters.strip())} letters, but "
                f"{len(marks.strip())} quality marks; fetch the file again"
            )
        out += [b">" + header[1:], letters, b"", b""]
    return b"\n".join([*out, b""]) if out else b""
