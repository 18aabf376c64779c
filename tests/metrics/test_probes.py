"""Probes and AUROC against scikit-learn, zero-shot scores by hand, and valid and invalid prompt files."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from cyclic_cli.errors import UsageError
from cyclic_cli.metrics import probes

Samples = tuple[np.ndarray, np.ndarray, np.ndarray]


def labelled_samples(classes: int, seed: int = 0, samples: int = 240) -> Samples:
    """Features (N, 6) of different scales, whose first columns depend on the class; labels; two samples per patient."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, samples)
    features = 1.2 * np.eye(6)[labels] + generator.normal(size=(samples, 6))
    return features * [1, 100, 1, 0.01, 1, 1], labels.astype(float), np.arange(samples) // 2


@pytest.mark.parametrize("classes", [2, 4])
def test_linear_probe_equals_scikit_learn(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "STRENGTHS", (0.01,))
    (train, labels, patients), (test, wanted, _) = labelled_samples(classes), labelled_samples(classes, 1)
    found = probes.linear_probe(train, labels, patients, test, wanted)
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=0.01, max_iter=1000).fit(scaler.transform(train), labels)
    chances = model.predict_proba(scaler.transform(test))
    area = roc_auc_score(wanted, chances[:, 1] if classes == 2 else chances, multi_class="ovr")
    assert found.accuracy == accuracy_score(wanted, model.predict(scaler.transform(test)))
    assert found.auroc == pytest.approx(area)
    assert (found.classes, found.train, found.test) == (classes, 240, 240)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_strength_is_chosen_on_other_patients(seed: int) -> None:
    """Every sample has a near copy: weak regularisation looks good if the split separates the copies."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, 200).astype(float)
    features = generator.normal(size=(200, 300))
    features[:, 0] += labels
    twins, labels = features.repeat(2, axis=0) + 0.1 * generator.normal(size=(400, 300)), labels.repeat(2)
    apart, together = (probes._strength(twins, labels, patients) for patients in (np.arange(400), np.arange(400) // 2))
    assert together < apart
    assert probes._strength(twins, labels, np.zeros(400)) == probes.STRENGTHS[2]


@pytest.mark.parametrize("missing", [np.nan, None])
def test_samples_with_missing_labels_are_left_out(missing: float | None) -> None:
    (train, labels, patients), (test, wanted, _) = labelled_samples(2), labelled_samples(2, 1)
    holes, gaps = labels.astype(object), wanted.astype(object)
    holes[::3], gaps[::4] = missing, missing
    kept, left = np.arange(240) % 3 > 0, np.arange(240) % 4 > 0
    found = probes.linear_probe(train, holes, patients, test, gaps)
    assert found == probes.linear_probe(train[kept], labels[kept], patients[kept], test[left], wanted[left])
    assert probes.knn(train, holes, test, gaps) == probes.knn(train[kept], labels[kept], test[left], wanted[left])


def test_text_labels_and_classes_that_training_lacks() -> None:
    (train, labels, patients), (test, wanted, _) = labelled_samples(2), labelled_samples(2, 1)
    names = np.array(["chest", "head"], dtype=object)
    found = probes.linear_probe(train, names[labels.astype(int)], patients, test, names[wanted.astype(int)])
    assert found == probes.linear_probe(train, labels, patients, test, wanted)
    strange = np.where(np.arange(240) < 120, wanted, 7.0)
    assert probes.linear_probe(train, labels, patients, test, strange).accuracy < 0.5


def test_a_single_class_gives_none() -> None:
    train, labels, patients = labelled_samples(2)
    one, none = np.ones(240), np.full(240, np.nan)
    assert probes.linear_probe(train, one, patients, train, labels) is None
    assert probes.linear_probe(train, none, patients, train, labels) is None
    assert probes.linear_probe(train, labels, patients, train, one).auroc is None
    assert probes.knn(train, one, train, labels) is None
    assert probes.auroc(one, train[:, 0], patients) is None
    assert probes.auroc(none, train[:, 0], patients) is None


def test_knn_weights_by_cosine_similarity() -> None:
    (train, labels, _), (test, wanted, _) = labelled_samples(3, samples=90), labelled_samples(3, 1, samples=90)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test)]
    similarity = unit[1] @ unit[0].T
    votes = np.zeros((90, 3))
    for row, near in enumerate(np.argsort(-similarity, axis=1)[:, :20]):
        np.add.at(votes[row], labels[near].astype(int), np.exp(similarity[row, near] / 0.07))
    assert probes.knn(train, labels, test, wanted) == np.mean(votes.argmax(axis=1) == wanted)


def test_zero_shot_scores_by_hand() -> None:
    images = np.array([[2.0, 0, 0], [0, 1, 0], [0, 0, 5]])
    positive, negative = np.array([[3.0, 0, 0], [0, 0, 0.5]]), np.array([[0, 7.0, 0]])
    assert probes.zero_shot(images, positive, negative) == pytest.approx([0.5**0.5, -1, 0.5**0.5])


def test_auroc_equals_scikit_learn_with_ties_and_weights() -> None:
    generator = np.random.default_rng(0)
    labels, scores, patients = generator.integers(0, 2, 300), generator.integers(0, 9, 300), np.arange(300) // 3
    found = probes.auroc(labels, scores + labels, patients)
    assert found.auroc == pytest.approx(roc_auc_score(labels, scores + labels))
    weights = generator.integers(0, 4, 300)
    area = roc_auc_score(labels, scores, sample_weight=weights)
    assert probes._area(labels == 1, scores, weights) == pytest.approx(area)
    assert found.ci95[0] < found.auroc < found.ci95[1]
    assert found.positives + found.negatives == 300


def test_interval_is_as_wide_as_the_spread_of_repeated_samples() -> None:
    generator = np.random.default_rng(1)
    areas = []
    for _ in range(200):
        labels = generator.integers(0, 2, 150)
        areas.append(roc_auc_score(labels, labels + generator.normal(size=150)))
    found = probes.auroc(labels, labels + generator.normal(size=150), np.arange(150))
    assert found.ci95[1] - found.ci95[0] == pytest.approx(np.subtract(*np.percentile(areas, [97.5, 2.5])), rel=0.25)


def test_prompts_are_inserted_into_the_templates(tmp_path: Path) -> None:
    path = tmp_path / "prompts.yaml"
    body = "prompts: {pneumonia: {positive: [pneumonia, 'a {0} opacity'], negative: [no pneumonia]}}"
    path.write_text(body)
    plain = {"positive": ["pneumonia", "a {0} opacity"], "negative": ["no pneumonia"]}
    assert probes.read_prompts(path) == {"pneumonia": plain}
    path.write_text("templates: ['{}', 'There is {}.']\n" + body)
    assert probes.read_prompts(path)["pneumonia"]["negative"] == ["no pneumonia", "There is no pneumonia."]


@pytest.mark.parametrize(
    ("body", "words"),
    {
        "prompts: [": "line 1 are not YAML",
        "\x00": "not YAML",
        "[]": "not a table",
        "templates: ['{}']": "`prompts` of",
        "prompt: {a: {positive: [b], negative: [c]}}": ": 'prompt'.",
        "prompts: {a: {positive: [b]}}": "`negative` of 'a'",
        "prompts: {a: {positive: b, negative: [c]}}": "`positive` of 'a'",
        "prompts: {a: {positive: [b], negative: [no]}}": "`negative` of 'a'",
        "prompts: {a: {positive: [b], negative: []}}": "`negative` of 'a'",
        "prompts: {a: {positve: [b], negative: [c]}}": ": 'positve'.",
        "templates: ['There is.']\nprompts: {a: {positive: [b], negative: [c]}}": "{} exactly once",
        "templates: 3\nprompts: {a: {positive: [b], negative: [c]}}": "`templates` of",
    }.items(),
)
def test_invalid_prompts_are_reported(tmp_path: Path, body: str, words: str) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(body)
    with pytest.raises(UsageError) as caught:
        probes.read_prompts(path)
    assert words in caught.value.message
    assert caught.value.hint


def test_unreadable_prompts_are_reported(tmp_path: Path) -> None:
    (tmp_path / "prompts.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "none.yaml", tmp_path / "prompts.yaml"):
        with pytest.raises(UsageError, match="cannot be read"):
            probes.read_prompts(path)
