"""What decides the values in a result: algorithm, models, chunking. No result mixes two of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ops.errors import IdentityError

#: Raised whenever the same input and models would give other values than before.
ALGORITHM_VERSION = 2
#: Names are what users call a model, `trained` is what is known of it: neither decides a value.
_DESCRIPTIVE = ("esm2_name", "dnabert_s_name", "classifier_name", "trained")
#: Came later: at these values a job is the one that it was without them, with the same digest.
_LATER: dict[str, Any] = {"min_length": 0, "max_ambiguous": 100}
_MODELS = ("esm2", "dnabert_s", "classifier")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """All that decides a value, apart from the input. Digests are "sha256:..."; None: not used."""

    algorithm: int = ALGORITHM_VERSION
    pipeline: str
    chunk_length: int  # 0 in protein and dna jobs
    esm2: str | None
    dnabert_s: str | None
    classifier: str | None
    esm2_name: str | None
    dnabert_s_name: str | None
    classifier_name: str | None
    trained: bool  # False when any of the models has weights that nobody trained
    layer: str = "last"
    pooling: str = "mean"
    dtype: str = "fp32"
    max_tokens: int = 8_192
    uracil_as_t: bool = True
    min_length: int = 0  # shorter records are filtered
    max_ambiguous: int = 100  # percent of a chunk's letters; chunks with more are not computed

    @property
    def digest(self) -> str:
        """16 hex digits over everything that decides values; names stay out of it."""
        deciding = {k: v for k, v in self.to_dict().items() if k not in _DESCRIPTIVE}
        text = json.dumps(deciding, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """As it is written into files: what came later is left out at its first value."""
        return {k: v for k, v in asdict(self).items() if _LATER.get(k, ...) != v}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Identity:
        """Raises IdentityError for values of another version of vnp."""
        known = {field.name for field in fields(cls)}
        if odd := sorted((set(values) ^ known) - (_LATER.keys() - values.keys())):
            raise IdentityError(
                f"identity of another version of vnp ({', '.join(odd)}); choose another --out"
            )
        return cls(**values)

    def differences(self, other: Identity) -> list[str]:
        """What decides values and is not the same, one phrase each: "dtype fp32, not bf16"."""
        return [
            f"{name} {self._shown(name)}, not {other._shown(name)}"
            for name in asdict(self)
            if name not in _DESCRIPTIVE and getattr(self, name) != getattr(other, name)
        ]

    def served_by(self, service: Identity) -> bool:
        """True when a service with these models and limits computes jobs of this identity.

        A job need not use all of its models, and chooses its own chunk length.
        """
        same = ("algorithm", "layer", "pooling", "dtype", "max_tokens")
        used = [name for name in _MODELS if getattr(self, name) is not None]
        return all(getattr(self, name) == getattr(service, name) for name in (*same, *used))

    @property
    def in_words(self) -> str:
        """Models and dtype, for messages."""
        names = (self.esm2_name, self.dnabert_s_name, self.classifier_name)
        return f"{', '.join(name for name in names if name)} in {self.dtype}"

    def _shown(self, name: str) -> str:
        """A value as users know it: a model by its name and the start of its digest."""
        value = getattr(self, name)
        if name not in _MODELS or value is None:
            return str(value).lower() if value is None or isinstance(value, bool) else str(value)
        return f"{getattr(self, name + '_name')} ({value[:15]})"


def require_same(ours: Identity, theirs: Identity, out: object) -> None:
    """Raises IdentityError when the results in `out` (theirs) are not what we would compute."""
    if ours.digest != theirs.digest:
        raise mismatch(out, theirs.differences(ours))


def mismatch(out: object, differences: list[str]) -> IdentityError:
    """The error for an output folder that holds something else; phrases as "theirs, not ours"."""
    return IdentityError(
        f"{out} holds results of another job ({'; '.join(differences)}); "
        "choose another --out, or replace them with --force"
    )
