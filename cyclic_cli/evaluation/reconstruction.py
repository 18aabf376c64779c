"""Measures how well a model reconstructs the samples of a split."""

from typing import Any

import numpy as np

from cyclic_cli.evaluation.split import BATCH, EmbeddedSplit
from cyclic_cli.events import Progress, Report
from cyclic_cli.imaging.readers import as_float, image_area
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.metrics.reconstruction import mse, psnr, ssim
from cyclic_cli.storage.dataset import StoredDataset


def reconstruction(model: TorchModel, split: EmbeddedSplit, stored: StoredDataset, report: Report) -> dict[str, Any]:
    """Mean errors of reconstructions; empty for a model without decoders.

    Returns:
        mse, psnr (dB), ssim: means over the images, without the margins of the letterbox, pixels in [0, 1]
        relative_error: of an image–text model, by modality the error relative to the mean predictor
    """
    if not model.has_decoders:
        return {}
    found: dict[str, Any] = {}
    if "image" in split.values and len(split.values["image"]):
        found |= _image_errors(model, split, stored, report)
    if model.is_joint:
        found["relative_error"] = {
            name: _relative_error(model, name, values, split.codes.get(name))
            for name, values in split.values.items()
            if len(values)
        }
    return found


def _image_errors(
    model: TorchModel, split: EmbeddedSplit, stored: StoredDataset, report: Report
) -> dict[str, float | None]:
    values, samples, codes = split.values["image"], split.with_modality("image"), split.codes.get("image")
    errors: dict[str, list[float]] = {"mse": [], "psnr": [], "ssim": []}
    for first in range(0, len(samples), BATCH):
        chosen = np.arange(first, min(first + BATCH, len(samples)))
        pixels = stored.images(values.shards[chosen], values.places[chosen])
        all_decoded = model.reconstruct(pixels, codes[chosen] if codes is not None else None)
        for sample, original, decoded in zip(samples[chosen], as_float(pixels), all_decoded, strict=True):
            area = image_area(
                int(split.index["height"][sample]), int(split.index["width"][sample]), stored.facts.preprocessing.size
            )
            for name, measure in (("mse", mse), ("psnr", psnr), ("ssim", ssim)):
                errors[name].append(measure(original[0][area], decoded[0][area]))
        report(Progress(int(chosen[-1]) + 1, len(samples), "images reconstructed"))
    return {name: _finite_mean(several) for name, several in errors.items()}


def _relative_error(model: TorchModel, name: str, values: Any, codes: np.ndarray | None) -> float:
    """The mean relative error of a modality that is decoded from its own shared and private code.

    `codes` (N, code) are the fixed codes of the samples; None: they are encoded here.
    """
    import torch

    total = 0.0
    with torch.inference_mode():
        for first in range(0, len(values), BATCH):
            chosen = np.arange(first, min(first + BATCH, len(values)))
            known = None if codes is None else model.placed(torch.from_numpy(np.asarray(codes[chosen])))
            # What is decoded from a text is its fixed code, so it is compared with that code.
            value = known if known is not None and name != "image" else model.placed(values.load(chosen))
            code = model.module.code(name, *model.module.parts(name, value if known is None else known))
            total += float(model.module.encoders[name].errors(code, value).sum())
    return total / len(values)


def _finite_mean(values: list[float]) -> float | None:
    """The mean of the finite values, because the PSNR of an exact reconstruction is infinite."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else None
