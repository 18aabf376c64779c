"""Fits the baselines on the training split, and measures them on the evaluated split like the model."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np

from cyclic_cli.data.mixture import may_be_paired
from cyclic_cli.evaluation import baselines as closed_form
from cyclic_cli.evaluation.embeddings import label_probes, recall_by_protocol
from cyclic_cli.evaluation.split import EmbeddedSplit

DIMS = 128  # components of a code

Embeddings = tuple[np.ndarray, np.ndarray]  # of images and of texts, for the same samples


def measure_baselines(
    train: EmbeddedSplit, split: EmbeddedSplit, groups: Mapping[str, np.ndarray], paired_fraction: float,
    paired_seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Figures of the baselines, see `baselines`.

    Args:
        train: The training samples.
        split: The samples to measure on.
        groups: By protocol (S,) for `split`, see `EmbeddedSplit.hit_groups`.
        paired_fraction: The share of the training patients whose pairs the baselines may use.
        paired_seed: Draws these patients.

    Returns:
        paired_fraction: as given
        mean_image: `mse`
        pca: `mse`, `dims`, and `linear_probe` and `knn` of its codes
        cca, ridge: recall by direction and protocol, like `embeddings.retrieval`; missing where there are too few pairs
    """
    found: dict[str, Any] = {"paired_fraction": paired_fraction}
    if "image" not in split.values or not len(split.values["image"]) or not len(train.values["image"]):
        return found
    train_images, images = _all_images(train), _all_images(split)
    found["mean_image"] = {"mse": closed_form.mean_image_mse(train_images, images)}
    pca = closed_form.PrincipalComponents(DIMS).fit(train_images)
    found["pca"] = {"mse": pca.mse(images), "dims": pca.dims}
    if split.labels:
        found["pca"] |= label_probes(
            replace(train, embeddings={"image": pca.transform(train_images)}),
            replace(split, embeddings={"image": pca.transform(images)}),
        )
    if "text" in split.values:
        found |= _maps(
            train,
            split,
            train_images,
            images,
            groups,
            may_be_paired(train.index["patient"], paired_fraction, paired_seed),
        )
    return found


def _all_images(split: EmbeddedSplit) -> np.ndarray:
    """The images (N, C, H, W) of a split, in the order of `split.values`."""
    values = split.values["image"]
    images: np.ndarray = values.load(np.arange(len(values))).numpy()
    return images


def _maps(
    train: EmbeddedSplit, split: EmbeddedSplit, train_images: np.ndarray, images: np.ndarray,
    groups: Mapping[str, np.ndarray], known: np.ndarray,
) -> dict[str, Any]:  # fmt: skip
    """Recall of each map between image codes and text codes. Empty with too few training patients or no test pairs.

    `known` (S,) bool tells which training samples may be used as pairs.
    """
    pairs, test_pairs = train.with_both("image", "text"), split.with_both("image", "text")
    pairs = pairs[known[pairs]]
    patients = train.index["patient"][pairs]
    if len(set(patients.tolist())) < closed_form.PATIENTS or not len(test_pairs):
        return {}
    image_codes = closed_form.ImageCodes(DIMS).fit(train_images)
    with_text = train.with_modality("text")
    text_codes = closed_form.TextCodes(DIMS).fit(
        train.index["text"][with_text].tolist(), train.index["patient"][with_text].tolist()
    )

    def codes(of: EmbeddedSplit, all_images: np.ndarray, samples: np.ndarray) -> Embeddings:
        texts = of.index["text"][samples].tolist()
        return image_codes.transform(all_images[of.numbers["image"][samples]]), text_codes.transform(texts)

    learned, tested = codes(train, train_images, pairs), codes(split, images, test_pairs)
    same_text = np.unique(train.index["text"][pairs].astype(str), return_inverse=True)[1]
    found = {}
    for name in closed_form.MAPS:
        fitted = closed_form.fit_map(name, *learned, patients, same_text)
        embeddings = {"image": fitted.embed("image", tested[0]), "text": fitted.embed("text", tested[1])}
        found[name] = {
            f"{a}_to_{b}": recall_by_protocol(embeddings[a], embeddings[b], test_pairs, split, groups)
            for a, b in permutations(embeddings, 2)
        }
    return found
