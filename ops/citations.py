"""What to cite, by what a result was made with."""

from __future__ import annotations

CITATIONS = {
    "method": (
        "Li J, Mi J, Lin W, Tian F, Wan J, Gao J, Tong Y. VirNucPro: an identifier for the "
        "identification of viral short sequences using six-frame translation and large language "
        "models. Brief Bioinform 2025;26(3):bbaf224. doi:10.1093/bib/bbaf224"
    ),
    "esm2": (
        "Lin Z et al. Evolutionary-scale prediction of atomic-level protein structure with a "
        "language model. Science 2023;379:1123-1130. doi:10.1126/science.ade2574"
    ),
    "dnabert_s": (
        "Zhou Z et al. DNABERT-S: pioneering species differentiation with species-aware DNA "
        "embeddings. arXiv:2402.08777"
    ),
}


def citations(pipeline: str = "virus") -> list[str]:
    """Those of a pipeline (virus, protein, dna), the method first."""
    used = {"virus": ("method", "esm2", "dnabert_s"), "protein": ("esm2",), "dna": ("dnabert_s",)}
    return [CITATIONS[name] for name in used[pipeline]]
