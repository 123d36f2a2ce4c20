"""Identity: what decides values is compared, names are not, and a mismatch names both sides."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from ops.errors import IdentityError
from ops.identity import ALGORITHM_VERSION, Identity, require_same
from tests.unit.output_fixtures import IDENTITY

OTHER = {
    "algorithm": ALGORITHM_VERSION + 1,
    "pipeline": "dna",
    "chunk_length": 500,
    "esm2": "sha256:" + "0" * 64,
    "dnabert_s": None,
    "classifier": "sha256:" + "1" * 64,
    "layer": "33",
    "pooling": "cls",
    "dtype": "bf16",
    "max_tokens": 1024,
    "uracil_as_t": False,
    "min_length": 300,
    "max_ambiguous": 20,
}
DESCRIPTIVE = {
    "esm2_name": "renamed",
    "dnabert_s_name": "renamed",
    "classifier_name": "renamed",
    "trained": True,
}


def test_every_field_is_known_to_this_test() -> None:
    assert {field.name for field in fields(Identity)} == set(OTHER) | set(DESCRIPTIVE)


@pytest.mark.parametrize("name", OTHER)
def test_whatever_decides_values_changes_the_digest(name: str) -> None:
    # Given an identity that differs in one thing
    other = replace(IDENTITY, **{name: OTHER[name]})
    # Then its digest differs, and the difference is named
    assert other.digest != IDENTITY.digest
    assert len(IDENTITY.differences(other)) == 1
    assert IDENTITY.differences(other)[0].startswith(name)


@pytest.mark.parametrize("name", DESCRIPTIVE)
def test_names_do_not_change_the_digest(name: str) -> None:
    other = replace(IDENTITY, **{name: DESCRIPTIVE[name]})
    assert other.digest == IDENTITY.digest
    assert IDENTITY.differences(other) == []
    require_same(IDENTITY, other, Path("out"))


def test_digest_is_the_same_in_every_process_and_version() -> None:
    # The value itself is pinned: a digest that moves would orphan every output folder.
    assert replace(IDENTITY, algorithm=1).digest == "e338cb24f0f5203b"


def test_round_trip() -> None:
    assert Identity.from_dict(IDENTITY.to_dict()) == IDENTITY


def test_values_of_another_version_are_refused() -> None:
    with pytest.raises(IdentityError, match="quantum"):
        Identity.from_dict({**IDENTITY.to_dict(), "quantum": 1})


def test_mismatch_names_both_sides_and_the_way_out() -> None:
    # Given results of another dtype and another model
    theirs = replace(IDENTITY, dtype="bf16", esm2="sha256:" + "0" * 64, esm2_name="esm2-3b")
    # When we would go on with them
    with pytest.raises(IdentityError) as caught:
        require_same(IDENTITY, theirs, Path("out"))
    # Then one line tells what is there, what is asked, and what to do
    message = str(caught.value)
    assert "dtype bf16, not fp32" in message
    assert "esm2 esm2-3b (sha256:00000000), not tiny-esm2 (sha256:eeeeeeee)" in message
    assert "--out" in message
    assert "--force" in message
    assert "\n" not in message
    assert caught.value.exit_code == 73


def test_a_folder_of_before_the_filters_is_the_same_job() -> None:
    # Given an identity without filters; Then what is written is what a version without them wrote
    written = IDENTITY.to_dict()
    assert not {"min_length", "max_ambiguous"} & written.keys()
    assert Identity.from_dict(written) == IDENTITY
    # And with them it is another one
    filtered = replace(IDENTITY, min_length=300)
    assert filtered.to_dict()["min_length"] == 300
    assert Identity.from_dict(filtered.to_dict()) == filtered
