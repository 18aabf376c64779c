"""Recall against brute force, torchmetrics and random rankings; protocols by hand; consistency by whole matrices."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.retrieval import retrieval_hit_rate

from cyclic_cli.metrics import retrieval

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


def random_embeddings(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def pairs() -> Pairs:
    """Queries and a gallery (60, 8) that are correlated, and groups of about three samples."""
    queries = random_embeddings(60, 8)
    gallery = queries + 0.6 * random_embeddings(60, 8, seed=1)
    groups = np.random.default_rng(2).integers(0, 20, 60)
    return queries, gallery / np.linalg.norm(gallery, axis=1, keepdims=True), groups


def brute_force_ranks(
    queries: np.ndarray, gallery: np.ndarray, query_groups: np.ndarray, gallery_groups: np.ndarray
) -> list[int]:
    ranks = []
    for query, group in zip(queries, query_groups, strict=True):
        scores = [
            (float(query @ item), int(other != group)) for item, other in zip(gallery, gallery_groups, strict=True)
        ]
        ranks.append(1 + [miss for _, miss in sorted(scores, key=lambda score: -score[0])].index(0))
    return ranks


@pytest.mark.parametrize("block", [retrieval.BLOCK, 130], ids=["whole", "blocks of two rows"])
def test_recall_equals_brute_force(pairs: Pairs, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "BLOCK", block)
    queries, gallery, groups = pairs
    found = retrieval.recall_at_k(queries, gallery, groups, groups, np.arange(60))
    ranks = np.array(brute_force_ranks(queries, gallery, groups, groups))
    assert [found.r1, found.r5, found.r10] == pytest.approx([np.mean(ranks <= k) for k in (1, 5, 10)])
    assert (found.median_rank, found.queries, found.pool) == (np.median(ranks), 60, 60)
    assert found.mrr == pytest.approx(np.mean(1 / np.asarray(ranks)))


def test_recall_equals_torchmetrics(pairs: Pairs) -> None:
    queries, gallery, groups = pairs
    found = retrieval.recall_at_k(queries, gallery, groups, groups, np.arange(60))
    scores, hits = torch.tensor(queries @ gallery.T), torch.tensor(groups[:, None] == groups)
    for k, value in ((1, found.r1), (5, found.r5), (10, found.r10)):
        rates = [float(retrieval_hit_rate(*row, top_k=k)) for row in zip(scores, hits, strict=True)]
        assert value == pytest.approx(np.mean(rates))


def test_ties_and_embeddings_of_a_diverged_model_rank_worst_case() -> None:
    collapsed = np.repeat(random_embeddings(1, 8), 50, axis=0)
    nearly = collapsed + np.float32(1e-8) * random_embeddings(50, 8)
    found = retrieval.recall_at_k(collapsed, nearly, np.arange(50), np.arange(50), np.arange(50))
    assert (found.r10, found.median_rank) == (0, 50)
    diverged = np.full((50, 8), np.nan, dtype=np.float32)
    assert retrieval.recall_at_k(diverged, diverged, np.arange(50), np.arange(50), np.arange(50)).median_rank == 50


def test_queries_without_a_hit_are_left_out(pairs: Pairs) -> None:
    queries, gallery, _ = pairs
    own = np.arange(60)
    found = retrieval.recall_at_k(queries, gallery[:40], own, own[:40], own)
    assert found == retrieval.recall_at_k(queries[:40], gallery[:40], own[:40], own[:40], own[:40])
    assert (found.queries, found.pool) == (40, 40)
    assert retrieval.recall_at_k(queries[40:], gallery[:40], own[40:], own[:40], own[40:]) is None


def test_chance_level_equals_random_rankings() -> None:
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), np.arange(1, 13))  # of 1 to 12 samples, 78 in all
    found = retrieval.recall_at_k(random_embeddings(78, 8), random_embeddings(78, 8, seed=1), groups, groups, groups)
    drawn = [np.mean([group in generator.permutation(groups)[:10] for group in groups]) for _ in range(300)]
    assert found.random_r10 == pytest.approx(np.mean(drawn), abs=0.01)
    assert retrieval.recall_at_k(*[random_embeddings(78, 8)] * 2, *[np.arange(78)] * 3).random_r10 == pytest.approx(
        10 / 78
    )


def test_interval_resamples_patients_not_samples() -> None:
    """40 patients with 9 equal samples each: as wide as for 40 samples, by the normal approximation of the binomial."""
    hit = np.repeat(np.arange(40) < 20, 9).astype(float)
    low, high = retrieval.patient_interval(np.repeat(np.arange(40), 9), lambda w: float(np.average(hit, weights=w)))
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.5 / 40**0.5, 0.5 + 1.96 * 0.5 / 40**0.5), abs=0.03)


def test_protocols_define_hits() -> None:
    nan = np.nan
    columns = {
        "text": np.array(["Clear.", "Clear.", "Effusion.", "Nodule."], dtype=object),
        "study": np.array(["s1", "s1", "s2", "s3"]),
        "patient": np.array(["p", "p", "p", "q"]),
        "labels": np.array([[0, nan], [0, nan], [nan, nan], [nan, nan]]),
    }
    groups = {name: values.tolist() for name, values in retrieval.protocols(columns).items()}
    assert groups["strict"] == [0, 1, 2, 3]
    assert groups["same_text"] == groups["same_study"] == groups["same_labels"] == [0, 0, 1, 2]
    assert groups["same_patient"] == [0, 0, 0, 1]
    assert retrieval.repeated(np.array(groups["same_text"])) == 2
    assert "same_labels" not in retrieval.protocols(columns | {"labels": np.zeros((4, 0))})


@pytest.mark.parametrize("block", [retrieval.BLOCK, 130], ids=["whole", "blocks of two rows"])
def test_consistency_equals_whole_matrices(pairs: Pairs, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "BLOCK", block)
    a, b, _ = pairs
    near = [[set(np.argsort(-row)[1:11]) for row in x @ x.T] for x in (a, b)]
    s = a @ b.T
    seen = [s[:, s[i].argmax()] for i in range(60)]
    back = [1 + int((column > column[i]).sum()) for i, column in enumerate(seen)]
    found = retrieval.cross_modal_consistency(a, b)
    assert found["knn_overlap"] == pytest.approx(np.mean([len(one & two) / 10 for one, two in zip(*near, strict=True)]))
    assert (found["cycle_rank"], found["cycle_r1"]) == (np.median(back), np.mean(np.array(back) == 1))
    assert found["asymmetry"] == pytest.approx(np.square(s - s.T).sum() / np.square(s).sum(), rel=1e-5)


def test_consistency_of_equal_modalities_and_of_one_sample() -> None:
    a = random_embeddings(30, 8)
    same = retrieval.cross_modal_consistency(a, a)
    wanted = {"knn_overlap": 1, "cycle_rank": 1, "cycle_r1": 1, "asymmetry": 0}
    assert same == pytest.approx(wanted, abs=1e-6)
    assert retrieval.cross_modal_consistency(a[:1], a[:1]) is None
