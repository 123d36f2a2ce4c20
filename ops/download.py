"""`vnp models download`: files of the Hugging Face hub, checked, into the models folder.

The hub's own client does the transfer, and goes on with a file that was cut off. What arrives is
checked against the digest that the hub gives it (sha256 of large files, git's sha1 of small ones),
which the client itself does not do. HF_HUB_OFFLINE, HF_ENDPOINT, HF_HOME and tokens work as they do
everywhere; offline, only what is in the cache is used.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from ops.errors import ConfigError, CorruptionError, NoInputError, UnavailableError
from ops.modelstore import ModelCard
from ops.weights import import_model

#: Short names of the published models.
PUBLISHED = {
    **{
        f"esm2-{size}": f"facebook/esm2_t{layers}_{size}_UR50D"
        for layers, size in ((6, "8M"), (12, "35M"), (30, "150M"), (33, "650M"), (36, "3B"))
    },
    "dnabert-s": "zhihan1996/DNABERT-S",
}
#: The commits that are fetched unless another is asked for: the weights of the papers, as several
#: public projects pin them (docs/log.md, 2026-11-26).
PINNED = {
    "facebook/esm2_t6_8M_UR50D": "c731040fcd8d73dceaa04b0a8e6329b345b0f5df",
    "facebook/esm2_t12_35M_UR50D": "6fbf070e65b0b7291e7bbcd451118c216cff79d8",
    "facebook/esm2_t30_150M_UR50D": "a695f6045e2e32885fa60af20c13cb35398ce30c",
    "facebook/esm2_t33_650M_UR50D": "08e4846e537177426273712802403f7ba8261b6c",
    "facebook/esm2_t36_3B_UR50D": "476b639933c8baad5ad09a60ac1a87f987b656fc",
    "zhihan1996/DNABERT-S": "00e47f96cdea35e4b6f5df89e5419cbe47d490c6",
}
_PUBLISHED_BY_LOWER = {name.lower(): repository for name, repository in PUBLISHED.items()}
_FILES = ["*.json", "*.safetensors", "*.txt"]
_PICKLES = "pytorch_model*.bin"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def download_model(
    model: str, name: str, dest: Path, *, revision: str = "", chunk_length: int | None = None
) -> ModelCard:
    """Downloads a published model (a name of PUBLISHED, or OWNER/REPOSITORY) and imports it.

    revision: empty for the pinned one, or the newest of a repository that is not PINNED. The card's
    source has the commit: give it as the revision to get the same files again. Raises
    ConfigError (no such model, or files that are none), UnavailableError (no network), NoInputError
    (offline, and not in the cache), CorruptionError (not the bytes that the hub has).
    """
    repository = _PUBLISHED_BY_LOWER.get(model.lower(), model)
    if repository.count("/") != 1:
        known = ", ".join(PUBLISHED)
        raise ConfigError(f"no published model {model!r}; give OWNER/REPOSITORY, or one of {known}")
    if (dest / name).exists():
        raise ConfigError(f"{dest / name} exists already; choose another --name or remove it")
    revision = revision or PINNED.get(repository, "main")
    folder = _fetch(repository, revision, name, _FILES)
    if not list(folder.glob("*.safetensors")):
        folder = _fetch(repository, revision, name, [*_FILES, _PICKLES])
    for path in sorted(folder.rglob("*")):
        _check(path)
    source = f"{repository}@{folder.name}"
    return import_model(folder, name, dest, chunk_length=chunk_length, source=source)


def _fetch(repository: str, revision: str, name: str, patterns: list[str]) -> Path:
    """The folder of a snapshot in the hub's cache, named after its commit."""
    # Not at the top: the command line starts without it.
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise ConfigError(f"{repository} asks for a login; run `hf auth login` first") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ConfigError(f"the hub has no {repository}; check the name") from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"{repository} has no revision {revision}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        elsewhere = (
            f"where there is a network, `hf download {repository} --revision {revision} "
            f"--local-dir DIR`, bring DIR here, and `vnp models import DIR --name {name}`"
        )
        if constants.is_offline_mode():
            raise NoInputError(
                f"HF_HUB_OFFLINE is set and {repository} is not in the cache; {elsewhere}"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnavailableError(
            f"{constants.ENDPOINT} does not give {repository} ({reason}); the same command goes on "
            f"later; or {elsewhere}"
        ) from error


def _check(path: Path) -> None:
    """A cached file is a link to a blob that is named after its digest."""
    if not path.is_symlink():
        return
    blob = path.resolve()
    data = hashlib.sha256()
    if _COMMIT.fullmatch(blob.name):
        data = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    with blob.open("rb") as stream:
        while block := stream.read(1 << 20):
            data.update(block)
    if data.hexdigest() != blob.name:
        blob.unlink()
        path.unlink()
        raise CorruptionError(f"{path.name} did not arrive as the hub has it; download it again")
