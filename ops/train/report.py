"""The report of a training as Markdown, for people; the JSON beside it holds every figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

MODELS = {
    "both": "both embeddings",
    "dna": "DNABERT-S only",
    "protein": "ESM-2 only",
    "kmer": "6-mer logistic regression",
}
SIDES = {
    "unseen_groups": "Groups never seen, neither in training nor in validation",
    "seen_groups": "Groups seen (other genomes of them)",
}


def markdown(report: dict[str, Any]) -> str:
    """The whole report."""
    parts = [
        f"# Report of classifier {report['name']}",
        _intro(report),
        *(_side(report, side) for side in SIDES if _has(report, side)),
        _frames(report),
        _reliability(report),
        _groups(report),
        _data(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _intro(report: dict[str, Any]) -> str:
    encoders, training = report["encoders"], report["training"]
    return (
        f"Chunks of {report['chunk_length']} bases; encoders {encoders['esm2']['name']} and "
        f"{encoders['dnabert']['name']}; {training['rows']:,} frames of {training['fragments']:,} "
        f"fragments; seed {report['seed']}; kept: {training['kept']}.\n\n"
        "Values in brackets are 95 % intervals of a bootstrap over genomes. All models are "
        "measured on the fragments that have an open frame, and so a score. AUROC 0.5 is chance."
    )


def _has(report: dict[str, Any], side: str) -> bool:
    return any(side in cell for cell in report["lengths"].values())


def _side(report: dict[str, Any], side: str) -> str:
    cells = {length: cell[side] for length, cell in report["lengths"].items() if side in cell}
    overview = _table(
        ("fragment", "viruses scored", "others scored", *MODELS.values(), "6-mers, all fragments"),
        (
            (
                length,
                _share(cell, "virus"),
                _share(cell, "other"),
                *(_value(cell[name], "auroc") for name in MODELS),
                _value(cell["kmer_all"], "auroc"),
            )
            for length, cell in cells.items()
        ),
    )
    names = ("auroc", "auprc", "accuracy", "sensitivity_at_1", "sensitivity_at_5")
    detail = _table(
        ("fragment", *(name.replace("_", " ") for name in names), "calibration error"),
        (
            (length, *(_value(cell["both"], name) for name in (*names, "calibration_error")))
            for length, cell in cells.items()
        ),
    )
    return (
        f"## {SIDES[side]}\n\nAUROC by fragment length:\n\n{overview}\n\n"
        f"Both embeddings (accuracy at 0.5; sensitivity at 1 and 5 % false positives):\n\n{detail}"
    )


def _share(cell: dict[str, Any], label: str) -> str:
    total = cell["fragments"][label]
    return f"{cell['scored'][label]} of {total}"


def _value(figures: dict[str, Any] | None, name: str) -> str:
    if figures is None:
        return "NA"
    value, low, high = figures[name]
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _frames(report: dict[str, Any]) -> str:
    training = report["training"]
    candidates = list(next(iter(training["frames"].values()))["candidates"])
    rows = (
        (name, f"{v['rows']:,}", v["kept"], *(f"{v['candidates'][c]:.4f}" for c in candidates))
        for name, v in training["frames"].items()
    )
    table = _table(("trained on", "frames", "kept", *candidates), rows)
    return (
        "## What was chosen\n\nAUROC of the candidates on the frames of validation groups. "
        "`all`: every stop-free frame, as inference sees them; `longest`: of each fragment only "
        "the frame with the longest run between stop codons in its genome, which stands for the "
        f"true reading frame. Kept: `{training['frames_kept']}`.\n\n{table}"
    )


def _reliability(report: dict[str, Any]) -> str:
    cell = report["lengths"].get(str(report["chunk_length"]), {}).get("unseen_groups")
    if cell is None:
        return ""
    table = _table(
        ("score", "fragments", "mean score", "share of viruses"),
        (
            (
                f"{b['from']:.1f} to {b['to']:.1f}",
                b["fragments"],
                f"{b['mean_score']:.3f}",
                f"{b['share_virus']:.3f}",
            )
            for b in cell["reliability"]
        ),
    )
    return f"## Reliability\n\nUnseen groups, fragments of one chunk:\n\n{table}"


def _groups(report: dict[str, Any]) -> str:
    lengths = list(report["groups"])
    if not lengths:
        return ""
    chunk = str(report["chunk_length"])
    by_name = {
        length: {(r["class"], r["group"]): r for r in report["groups"][length]}
        for length in lengths
    }
    main = by_name.get(chunk, by_name[lengths[0]])
    rows = [
        (
            row["group"],
            row["class"],
            "yes" if row["seen"] else "no",
            row["genomes"],
            f"{row['scored']} of {row['fragments']}",
            _plain(row["called_right"]),
            *(_plain(by_name[length].get(key, {}).get("auroc")) for length in lengths),
        )
        for key, row in main.items()
    ]
    head = ("group", "class", "seen", "genomes", "scored", "called right")
    heads = (*head, *(f"AUROC {length}" for length in lengths))
    return (
        "## By group\n\nA group's AUROC is against the other class's scored fragments; counts and "
        f"calls are those of {chunk} bases.\n\n{_table(heads, rows)}"
    )


def _plain(value: float | None) -> str:
    return "NA" if value is None else f"{value:.3f}"


def _data(report: dict[str, Any]) -> str:
    rows = (
        (split, label, f"{c['genomes']:,}", f"{c['groups']:,}", f"{c['bases']:,}")
        for split, labels in report["data"]["counts"].items()
        for label, c in labels.items()
    )
    table = _table(("split", "class", "genomes", "groups", "bases"), rows)
    return f"## Data\n\n{table}\n\nDigest {report['data']['digest']}."


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
