"""The parts of a training: labels and splits, overlap, fragments, frames, metrics, the fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from ops.calls import call_chunk, call_record
from ops.classifier import Classifier, classify
from ops.errors import DataError, NoInputError, UsageError, VnpError
from ops.frames_plain import translate
from ops.nouns import Status
from ops.train.evaluate import record_scores
from ops.train.features import Features
from ops.train.fit import Recipe, Rows, balanced, fit
from ops.train.fragments import Sources, draw, grid, whole
from ops.train.kmers import frequencies
from ops.train.labelled import Genome, assign_splits, data_digest, read_labelled
from ops.train.metrics import figures, measure, reliability
from ops.train.overlap import canonical_kmers, check_overlap
from ops.train.reading_frames import longest_frames, open_runs
from tests.unit.genome_fixtures import open_letters

COMPLEMENT = str.maketrans("ACGT", "TGCA")


# -- labels and splits -----------------------------------------------------------------------------


def write_fasta(path: Path, records: dict[str, bytes]) -> Path:
    path.write_bytes(b"".join(b">%s\n%s\n" % (n.encode(), s) for n, s in records.items()))
    return path


def two_files(folder: Path, count: int = 10) -> tuple[Path, Path]:
    names = [(f"{kind}{i}", kind == "v") for kind in "vo" for i in range(count)]
    letters = {name: open_letters(900, virus, i) for i, (name, virus) in enumerate(names)}
    return (
        write_fasta(folder / "v.fa", {n: s for n, s in letters.items() if n[0] == "v"}),
        write_fasta(folder / "o.fa", {n: s for n, s in letters.items() if n[0] == "o"}),
    )


def test_groups_stay_whole_when_splits_are_made(tmp_path: Path) -> None:
    # Given 20 records of each class in 10 groups of two
    virus, other = two_files(tmp_path, 20)
    labels = tmp_path / "labels.tsv"
    lines = [f"{kind}{i}\tgroup{i // 2}" for kind in "vo" for i in range(20)]
    labels.write_text("id\tgroup\n" + "\n".join(lines) + "\n")
    # When they are read
    genomes = read_labelled([virus], [other], labels, seed=3)
    # Then no group of a class is in two splits, and every split has both classes
    splits: dict[tuple[bool, str], set[str]] = {}
    for genome in genomes:
        splits.setdefault((genome.virus, genome.group), set()).add(genome.split)
    assert all(len(found) == 1 for found in splits.values())
    for label in ("virus", "other"):
        assert {g.split for g in genomes if g.label == label} == {"train", "valid", "test"}
    # And the same seed gives the same splits, another seed others
    assert genomes == read_labelled([virus], [other], labels, seed=3)
    assert genomes != read_labelled([virus], [other], labels, seed=4)
    assert data_digest(genomes) == data_digest(genomes[::-1])


def test_given_splits_are_kept_and_u_is_t(tmp_path: Path) -> None:
    # Given a table with splits, and a record with U
    virus = write_fasta(tmp_path / "v.fa", {f"v{i}": b"ACGU" * 10 for i in range(5)})
    other = write_fasta(tmp_path / "o.fa", {f"o{i}": b"AC" * 10 for i in range(5)})
    labels = tmp_path / "labels.tsv"
    split = ("train", "train", "train", "valid", "test")
    lines = [f"{kind}{i}\t{split[i]}" for kind in "vo" for i in range(5)]
    labels.write_text("id\tsplit\n" + "\n".join(lines))
    # When read; Then records are where the table says, each its own group
    genomes = read_labelled([virus], [other], labels, seed=1)
    assert [g.split for g in genomes] == [*split, *split]
    assert [g.group for g in genomes] == [g.name for g in genomes]
    assert genomes[0].letters == b"ACGT" * 10


@pytest.mark.parametrize(
    ("table", "error", "words"),
    [
        ("id\tgroup\nv0\ta\nnobody\tb\n", DataError, "names 1 ids that no FASTA record has"),
        ("id\tgroup\nv0\ta\n", DataError, "has no line for v1; add it"),
        ("name\tgroup\nv0\ta\n", DataError, "has no column id"),
        ("id\tgroup\nv0\ta\nv0\tb\n", DataError, "labels.tsv:3: v0 has a line already"),
        ("id\tsplit\nv0\tdev\n", DataError, "labels.tsv:2: split 'dev' is not train"),
        ("id\tsplit\nv0\ttrain\nv1\t\n", DataError, "gives splits, but none to v1"),
        (b"id\tgroup\n\xff\xfe\ta\n", DataError, "is not UTF-8"),
        (None, NoInputError, "labels.tsv cannot be read: No such file"),
    ],
)
def test_wrong_labels_are_told(
    tmp_path: Path, table: str | bytes | None, error: type[VnpError], words: str
) -> None:
    virus, other = two_files(tmp_path)
    labels = tmp_path / "labels.tsv"
    if table is not None:
        labels.write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.raises(error) as caught:
        read_labelled([virus], [other], labels, seed=1)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_few_doubled_and_two_faced_genomes_are_told(tmp_path: Path) -> None:
    virus, other = two_files(tmp_path)
    few = write_fasta(tmp_path / "few.fa", {"x": b"ACGT", "y": b"ACGT"})
    with pytest.raises(UsageError, match="genomes of class virus for train, where at least 3"):
        read_labelled([few], [other], None, seed=1)
    with pytest.raises(DataError, match="v0 is there more than once, as are 9 other ids"):
        read_labelled([virus, virus], [other], None, seed=1)
    with pytest.raises(DataError, match="v0 is among both --virus and --other"):
        read_labelled([virus], [virus], None, seed=1)


def genome(name: str, virus: bool, split: str, letters: bytes) -> Genome:
    return Genome(name, virus, name, split, letters)


def test_one_genome_on_both_sides_is_found_on_either_strand() -> None:
    # Given a genome for training, and most of its complement, renamed, for the test
    letters = open_letters(9_000, True, 1)
    back = letters[500:].decode().translate(COMPLEMENT)[::-1].encode()
    one, two = genome("a", True, "train", letters), genome("b", True, "test", back)
    others = [genome(f"o{i}", False, "train", open_letters(9_000, False, i)) for i in range(3)]
    # When checked; Then both are named with where they stand
    with pytest.raises(DataError, match=r"a \(virus, train\) and b \(virus, test\) are the same"):
        check_overlap([one, *others, two])
    # And so is a genome in both classes; but on one side it is nobody's business
    with pytest.raises(DataError, match=r"b \(other, train\)"):
        check_overlap([one, replace(two, virus=False, split="train")])
    check_overlap([one, *others, replace(two, split="train")])
    # And half a genome is another one
    half = letters[:4_500] + open_letters(4_500, True, 9)
    check_overlap([one, genome("c", True, "test", half)])


def test_kmers_are_those_of_the_plain_way() -> None:
    # Given letters with unknown ones among them
    letters = open_letters(300, True, 2)[:150] + b"N" + open_letters(300, True, 3)[:60]
    text = letters.decode()
    # When the 31-mers are listed plainly, each with its complement
    expected = []
    for i in range(len(text) - 30):
        word = text[i : i + 31]
        if "N" not in word:
            back = word.translate(COMPLEMENT)[::-1]
            codes = [int("".join(str("ACGT".index(c)) for c in w), 4) for w in (word, back)]
            expected.append(min(codes))
    # Then they are the same
    assert canonical_kmers(letters).tolist() == expected
    assert len(canonical_kmers(b"ACGT")) == 0


# -- fragments and frames --------------------------------------------------------------------------


def some_sources() -> Sources:
    length = np.array([100, 5_000, 40_000, 1_000, 9_000, 300])
    virus = np.array([True, True, True, False, False, False])
    return Sources(length, virus, ["a", "a", "b", "c", "c", "d"])


def test_drawn_fragments_lie_inside_and_balance() -> None:
    # Given sources; When fragments are drawn
    drawn = draw(some_sources(), 2_000, 500, 7, shortest=150, share_longest=0.5)
    genome_, start, length = drawn.T
    # Then each lies inside a genome that is long enough, half are viral, half have full length
    assert (start >= 0).all()
    assert (start + length <= some_sources().length[genome_]).all()
    assert set(genome_.tolist()) == {1, 2, 3, 4}
    assert abs(some_sources().virus[genome_].mean() - 0.5) < 0.1
    assert 0.45 < (length == 500).mean() < 0.55
    assert length.min() >= 150
    # And the seed decides
    again = draw(some_sources(), 2_000, 500, 7, shortest=150, share_longest=0.5)
    assert (drawn == again).all()


def test_small_groups_are_not_worn_out() -> None:
    # Given a group of one short genome; When far too many fragments are asked for
    sources = Sources(np.array([600, 600]), np.array([True, False]), ["a", "b"])
    # Then no base is drawn more than 40 times
    assert len(draw(sources, 100_000, 300, 1)) == 2 * 40 * 2


def test_grids_do_not_overlap_and_whole_is_whole() -> None:
    laid = grid(some_sources(), 300, 20, 7)
    for number in set(laid[:, 0].tolist()):
        starts = np.sort(laid[laid[:, 0] == number, 1])
        assert (np.diff(starts) >= 300).all()
        assert starts.max() + 300 <= some_sources().length[number]
    groups = np.array(some_sources().group)[laid[:, 0]]
    assert {g: int((groups == g).sum()) for g in "abcd"} == {"a": 16, "b": 20, "c": 20, "d": 1}
    assert whole(some_sources(), 1_000, 5, 7)[:, 2].tolist() == [1_000, 9_000, 5_000, 40_000]


def test_open_runs_against_walking_codon_by_codon() -> None:
    # Given a random genome, which has many stops, and fragments in every frame
    rng = np.random.default_rng(0)
    letters = rng.choice(np.frombuffer(b"ACGT", np.uint8), 2_000).tobytes()
    for _ in range(300):
        length = int(rng.integers(30, 200))
        start, frame = int(rng.integers(0, 2_001 - length)), int(rng.integers(1, 7))
        strand, first = letters.decode(), start
        if frame > 3:
            strand, first = strand.translate(COMPLEMENT)[::-1], 2_000 - start - length
        first += (frame - 1) % 3
        residues = translate(strand, first % 3)
        if residues[first // 3] == "*":
            continue
        # When the run around its first codon is walked; Then it is as long as looked up
        before = residues[: first // 3].rpartition("*")[2]
        behind = residues[first // 3 :].partition("*")[0]
        found = open_runs(letters, np.array([[start, length]]), np.array([frame], np.uint8))
        assert found.tolist() == [len(before) + len(behind)]


def test_the_longest_frame_of_each_fragment_is_kept() -> None:
    # Given a genome that is open in its first frame only from end to end
    letters = open_letters(3_000, True, 4)
    fragments = np.array([[0, 0, 90], [0, 300, 90]])
    fragment, frame = np.array([0, 0, 1, 1]), np.array([1, 4, 2, 1], np.uint8)
    # When asked which rows are the true frame; Then it is that one, once a fragment
    assert longest_frames({0: letters}, fragments, fragment, frame).tolist() == [1, 0, 0, 1]


# -- scores and metrics ----------------------------------------------------------------------------


def test_record_scores_are_those_of_the_rule() -> None:
    # Given frames of several chunks of several fragments, one fragment without any
    rng = np.random.default_rng(1)
    fragment = np.array([0, 0, 0, 2, 2, 3])
    chunk = np.array([0, 0, 2, 0, 1, 5], np.uint32)
    frame = np.array([1, 4, 2, 3, 3, 6], np.uint8)
    virus = rng.random(6).astype(np.float32)
    scores = np.stack([1 - virus, virus], axis=1)
    empty = np.zeros((6, 0), np.float32)
    # When scored at once
    found = record_scores(Features(fragment, chunk, frame, empty, empty), scores, 4)
    # Then it is what the plain rule says, chunk by chunk and record by record
    for number in range(4):
        calls = []
        for c in sorted(set(chunk[fragment == number].tolist())):
            rows = np.flatnonzero((fragment == number) & (chunk == c))
            call = call_chunk([(int(frame[r]), *scores[r].astype(float)) for r in rows])
            calls.append((int(Status.OK), call.is_virus, call.score))
        assert found[number] == pytest.approx(call_record(calls).virus_score, nan_ok=True)
    assert np.isnan(found[1])


def test_figures_against_scikit_learn_and_by_hand() -> None:
    rng = np.random.default_rng(2)
    virus = rng.random(400) < 0.4
    score = np.clip(rng.normal(0.4 + 0.2 * virus, 0.2), 0, 1)
    found = figures(virus, score, np.ones(400))
    assert found["auroc"] == pytest.approx(roc_auc_score(virus, score))
    assert found["auprc"] == pytest.approx(average_precision_score(virus, score))
    # 1 % of the others is the score that two of them reach or pass; and so for 5 %
    others = np.sort(score[~virus])[::-1]
    for percent in (1, 5):
        allowed = int(len(others) * percent / 100)
        expected = (score[virus] > others[allowed]).mean()
        assert found[f"sensitivity_at_{percent}"] == pytest.approx(expected)
    # A fragment of weight two counts as two fragments
    weight = rng.integers(0, 3, 400).astype(float)
    times = np.repeat(np.arange(400), weight.astype(int))
    doubled = figures(virus[times], score[times], np.ones(len(times)))
    assert figures(virus, score, weight) == pytest.approx(doubled)
    # And a perfectly calibrated score has no error: 0.25 with one in four
    flat = figures(np.array([True, False, False, False]), np.full(4, 0.25), np.ones(4))
    assert flat["calibration_error"] == 0
    assert reliability(np.array([True, False]), np.array([0.95, 1.0])) == [
        {"from": 0.9, "to": 1.0, "fragments": 2, "mean_score": 0.975, "share_virus": 0.5}
    ]


def test_intervals_are_over_genomes() -> None:
    # Given 400 fragments of only 4 genomes, or of 400
    rng = np.random.default_rng(3)
    virus = np.arange(400) % 2 == 0
    score = np.clip(rng.normal(0.45 + 0.1 * virus, 0.2), 0, 1)
    few = measure(virus, score, np.arange(400) % 4, seed=1)
    many = measure(virus, score, np.arange(400), seed=1)
    assert few is not None
    assert many is not None
    # Then value and interval are in order, the value does not depend on it, and the seed decides
    low, high = few["auroc"][1:]
    assert low <= few["auroc"][0] <= high
    assert few["auroc"][0] == many["auroc"][0]
    assert few == measure(virus, score, np.arange(400) % 4, seed=1)
    assert few["auroc"] != many["auroc"]
    # And without one of the classes there is nothing to say
    assert measure(np.ones(5, bool), np.ones(5), np.arange(5), seed=1) is None


def test_kmer_frequencies_against_counting() -> None:
    text = "ACGTNACGTTGCA"
    rows = frequencies([text.encode()], np.array([[0, 0, len(text)], [0, 1, 4]]))
    back = text.translate(COMPLEMENT)[::-1]
    words = [s[i : i + 6] for s in (text, back) for i in range(len(s) - 5)]
    words = [word for word in words if "N" not in word]
    for word in words:
        place = int("".join(str("ACGT".index(c)) for c in word), 4)
        assert rows[0, place] == pytest.approx(words.count(word) / len(words))
    assert rows[0].sum() == pytest.approx(1)
    assert rows[1].sum() == 0


# -- the fit ---------------------------------------------------------------------------------------


def rows_of(count: int, seed: int, width: int = 12) -> Rows:
    """Two classes that differ along one direction, of unequal size and odd scales."""
    rng = np.random.default_rng(seed)
    virus = rng.random(count) < 0.3
    features = rng.normal(size=(count, width)) + 1.5 * virus[:, None] * (np.arange(width) == 2)
    scales = 10.0 ** (np.arange(width) % 4 - 2)
    return Rows((features * scales + scales).astype(np.float32), virus, balanced(virus))


def test_weights_balance_classes() -> None:
    rows = rows_of(500, 1)
    assert rows.weight[rows.virus].sum() == pytest.approx(rows.weight[~rows.virus].sum(), rel=1e-4)
    assert rows.weight.mean() == pytest.approx(1, rel=1e-4)


def test_a_fit_learns_and_repeats_to_the_bit() -> None:
    # Given rows of two classes
    train, valid, test = rows_of(2_000, 1), rows_of(500, 2), rows_of(1_000, 3)
    recipe = Recipe(width=32, epochs=20)
    threads = torch.get_num_threads()
    # When a classifier is fitted twice
    first, second = (fit(train, valid, (4, 8), recipe) for _ in range(2))
    # Then it ranks unseen rows nearly as well as the best direction does
    scores = classify(first.classifier, test.features[:, :4], test.features[:, 4:])[:, 1]
    best = roc_auc_score(test.virus, test.features[:, 2])
    assert roc_auc_score(test.virus, scores) > best - 0.02
    # And 0.5 separates balanced classes: it is calibrated
    assert abs((scores[test.virus] >= 0.5).mean() - (scores[~test.virus] < 0.5).mean()) < 0.1
    # And both have the same bits, whatever threads and random state were before
    assert torch.get_num_threads() == threads
    for key, value in first.classifier.state_dict().items():
        assert torch.equal(value, second.classifier.state_dict()[key]), key
    assert first.candidates == second.candidates
    assert first.kept == max(first.candidates, key=lambda name: first.candidates[name])
    # And another seed trains another MLP
    other = fit(train, valid, (4, 8), replace(recipe, seed=2))
    assert other.curve != first.curve


def test_the_mlp_ends_early_and_goes_back() -> None:
    # Given labels that are chance: there is nothing to learn but noise
    rng = np.random.default_rng(5)
    rows = [
        replace(rows_of(400, s), virus=(v := rng.random(400) < 0.5), weight=balanced(v))
        for s in (1, 2)
    ]
    # When fitted; Then it ends patience epochs after its best
    curve = fit(rows[0], rows[1], (4, 8), Recipe(width=64, patience=3, rate=1e-2)).curve
    best = min(curve, key=lambda epoch: epoch["valid"])
    assert curve[-1]["epoch"] == best["epoch"] + 3


def test_a_linear_candidate_is_the_regression() -> None:
    # Given rows; When the best candidate is linear
    train, valid = rows_of(3_000, 1), rows_of(800, 2)
    found = fit(train, valid, (4, 8), Recipe(width=4, epochs=1))
    assert found.kept.startswith("linear")
    penalty = float(found.kept.split()[-1])
    # Then its scores are those of scikit-learn's regression, after the same calibration
    mean, spread = train.features.mean(0), train.features.std(0)
    theirs = LogisticRegression(C=1 / (penalty * len(train.virus)), tol=1e-8, max_iter=1_000)
    theirs.fit((train.features - mean) / spread, train.virus, sample_weight=train.weight)
    odds = theirs.decision_function((valid.features - mean) / spread)
    expected = 1 / (1 + np.exp(-(found.scale * odds + found.shift)))
    ours = classify(found.classifier, valid.features[:, :4], valid.features[:, 4:])[:, 1]
    # fp32 weights over features of scales from 0.01 to 10, and two solvers' stopping points.
    assert np.abs(ours - expected).max() < 1e-3


def test_a_loss_that_is_not_finite_ends_it() -> None:
    # Given a learning rate far too high; When fitted; Then one line says what to do
    with pytest.raises(DataError, match=r"not finite in epoch \d+; choose a lower --rate"):
        fit(rows_of(600, 1), rows_of(200, 2), (4, 8), Recipe(width=8, rate=1e30))


def test_classifiers_are_written_for_inference() -> None:
    # Given a fit; Then its classifier is frozen, in fp32, and made for whole blocks
    found = fit(rows_of(600, 1), rows_of(200, 2), (4, 8), Recipe(width=8, epochs=2))
    assert isinstance(found.classifier, Classifier)
    assert not found.classifier.training
    for value in found.classifier.parameters():
        assert value.dtype == torch.float32
        assert not value.requires_grad


def test_splits_leave_training_the_most() -> None:
    genomes = [
        genome(f"{kind}{i}", kind == "v", "", b"A" * 100) for kind in "vo" for i in range(20)
    ]
    counts = [g.split for g in assign_splits(genomes, 1)]
    assert counts.count("test") == counts.count("valid") == 6
