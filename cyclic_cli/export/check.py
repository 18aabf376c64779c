"""Compares exported parts with the checkpoint: outputs, reconstruction quality, neighbours and recall."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from cyclic_cli.export.examples import EXAMPLES, POOL
from cyclic_cli.export.parts import Part
from cyclic_cli.inference.onnx_model import OnnxModel, PartRunner
from cyclic_cli.inference.torch_model import TorchModel
from cyclic_cli.metrics.reconstruction import psnr
from cyclic_cli.metrics.retrieval import recall_at_k
from cyclic_cli.storage import onnx_file
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.storage.onnx_file import Description

BATCHES = (1, 2, 7, EXAMPLES)  # batch sizes of a check
LARGEST_ERROR = 1e-4  # largest absolute error of outputs in float32
LARGEST_PSNR_LOSS = {"fp16": 0.1, "int8": 0.5}  # dB
LARGEST_RECALL_CHANGE = 0.005  # of R@1, R@5 and R@10 in fp16, as shares
LEAST_OVERLAP = 0.99  # share of the ten nearest neighbours that must stay the same in fp16
NEIGHBOURS = 10


class CheckFailed(Exception):
    """An exported part does not do what the checkpoint does. The message names the difference."""


def check(path: Path, part: Part, description: Description) -> dict[str, Any]:
    """Compare an exported part with its module.

    Returns:
        max_abs_error: over random, real and partly black inputs, in batches of `BATCHES`
        bytes: the size of the file with its weights
        psnr_change: in dB; only of fp16 and int8, where the part reconstructs images
        top10_overlap: the share of the ten nearest neighbours that stay the same; only of fp16 and int8, where the part
            embeds

    Raises:
        CheckFailed: A figure exceeds its limit, or the file is not valid ONNX.
    """
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckFailed("it is not valid ONNX") from error
    comparison = Comparison(path, part, description)
    figures: dict[str, Any] = {"max_abs_error": comparison.largest_error(), "bytes": onnx_file.size_of(path)}
    if description.precision == "float32":
        if not figures["max_abs_error"] <= LARGEST_ERROR:  # `not <=`, so that NaN fails too
            raise CheckFailed(f"its outputs differ by up to {figures['max_abs_error']:.2g}")
        return figures
    if "embedding" in part.outputs:
        figures["top10_overlap"] = comparison.overlap()
        if description.precision == "fp16" and figures["top10_overlap"] < LEAST_OVERLAP:
            raise CheckFailed(f"only {figures['top10_overlap']:.1%} of the ten nearest neighbours stay the same")
    if "reconstruction" in part.outputs and "image" in part.inputs:
        figures["psnr_change"] = comparison.psnr_change()
        if not figures["psnr_change"] >= -LARGEST_PSNR_LOSS[description.precision]:
            raise CheckFailed(f"the PSNR of its reconstructions is {-figures['psnr_change']:.2f} dB lower")
    return figures


class Comparison:
    """Runs a part with ONNX Runtime and with torch on the same inputs."""

    def __init__(self, path: Path, part: Part, description: Description) -> None:
        self.part, self.rendered = part, description.rendered
        self._runner = PartRunner(path, description)
        self._real: list[tuple[list[np.ndarray], list[np.ndarray]]] = []

    def largest_error(self) -> float:
        """The largest absolute difference of any output, over random, real and partly black inputs; NaN if one is."""
        largest = [0.0]
        for count in BATCHES:
            real = tuple(one[:count] for one in self.part.examples)
            for inputs in (self.part.random(count), real, partly_black(real)):
                for by_torch, by_runtime in zip(*self.both(inputs), strict=True):
                    largest.append(float(np.abs(by_torch - by_runtime).max()))
        return float(np.max(largest))  # `max` would pass over NaN

    def both(self, inputs: tuple[Tensor, ...]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The outputs of torch and of ONNX Runtime. Tokens are cut after the longest text, and window, of the batch."""
        if not inputs[0].is_floating_point():
            inputs = _without_padding(inputs)
        elif self.rendered:
            inputs = (torch.round(inputs[0] * 255) / 255,)  # the file takes 8-bit images
        with torch.inference_mode():
            outputs = self.part.module(*inputs)
        by_torch = [one.float().cpu().numpy() for one in (outputs if isinstance(outputs, tuple) else (outputs,))]
        arrays = [one.cpu().numpy() for one in inputs]
        if self.rendered:
            arrays = [np.rint(arrays[0] * 255).astype(np.uint8)]
        given = dict(zip(self.part.inputs, arrays, strict=True))
        return by_torch, [one.astype(np.float32, copy=False) for one in self._runner.run(self.part.outputs, given)]

    def outputs(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """One output for all examples, (N, ...) of torch and of ONNX Runtime."""
        if not self._real:
            chunks = zip(*(torch.split(one, EXAMPLES) for one in self.part.examples), strict=True)
            self._real = [self.both(chunk) for chunk in chunks]
        place = self.part.outputs.index(name)
        by_torch, by_runtime = ([chunk[side][place] for chunk in self._real] for side in (0, 1))
        return np.concatenate(by_torch), np.concatenate(by_runtime)

    def overlap(self) -> float:
        """The share of the ten nearest neighbours of each example, among the others, that stay the same."""
        by_torch, by_runtime = (_nearest(embeddings) for embeddings in self.outputs("embedding"))
        return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(by_torch, by_runtime, strict=True)]))

    def psnr_change(self) -> float:
        """The mean change of the PSNR of reconstructions, in dB over the examples. Negative: the file is worse."""
        originals = self.part.examples[0].cpu().numpy()
        by_torch, by_runtime = self.outputs("reconstruction")
        return float(np.mean([
            psnr(original, exported) - psnr(original, reference)
            for original, exported, reference in zip(originals, by_runtime, by_torch, strict=True)
        ]))  # fmt: skip


def partly_black(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Images (N, C, H, W) whose upper half is black, the first one altogether; inputs of other kinds as they are."""
    if not inputs[0].is_floating_point() or inputs[0].dim() != 4:
        return inputs
    images = inputs[0].clone()
    images[:, :, : images.shape[2] // 2] = 0
    images[:1] = 0
    return images, *inputs[1:]


def _without_padding(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Tokens (N, L) or (N, P, W, L), and further inputs of their shape, without windows and places that are all 0."""
    tokens = inputs[0]
    sides = [slice(None)] * tokens.dim()
    for side in (1,) if tokens.dim() == 2 else (2, 3):
        is_used = (tokens != 0).transpose(0, side).flatten(1).any(1)
        sides[side] = slice(int(is_used.nonzero().max()) + 1)
    return tuple(one[tuple(sides)] for one in inputs)


def _nearest(embeddings: np.ndarray) -> np.ndarray:
    """The row numbers (N, K) of the most similar other embeddings, for embeddings (N, D); K is at most ten."""
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(embeddings) - 1)]


def recall_change(model: TorchModel, exported: OnnxModel, stored: StoredDataset) -> tuple[float | None, float]:
    """How retrieval changes when both encoders are exported.

    Recall is that of each sample's own partner, in both directions. It is measured on the pairs of the validation
    split, or of the training split where the validation split has none.

    Returns:
        The change with the largest absolute value among R@1, R@5 and R@10, as a share; None without pairs.
        The share of one query, the smallest change other than 0.
    """
    columns = ["has_image", "has_text", "shard", "row", "text", "patient"]
    for split in ("val", "train"):
        rows = stored.rows(columns, split)
        pairs = np.flatnonzero(rows["has_image"].astype(bool) & rows["has_text"].astype(bool))[:POOL]
        if len(pairs):
            break
    else:
        return None, 0.0
    images = stored.images(rows["shard"][pairs], rows["row"][pairs])
    texts, patients = rows["text"][pairs].tolist(), rows["patient"][pairs]
    before, after = (_recalls(one, images, texts, patients) for one in (model, exported))
    changes = after - before
    return float(changes[np.abs(changes).argmax()]) if len(changes) else None, 1 / len(pairs)


def _recalls(model: TorchModel | OnnxModel, images: np.ndarray, texts: list[str], patients: np.ndarray) -> np.ndarray:
    """R@1, R@5 and R@10 of image to text, then of text to image, for pairs of images (N, C, S, S) and texts (N)."""
    chunks = [slice(first, first + EXAMPLES) for first in range(0, len(texts), EXAMPLES)]
    image_embeddings = np.concatenate([model.embed_images(images[chunk]) for chunk in chunks])
    text_embeddings = np.concatenate([model.embed_texts(texts[chunk]) for chunk in chunks])
    own = np.arange(len(texts))
    recalls = [
        recall_at_k(queries, gallery, own, own, patients)
        for queries, gallery in ((image_embeddings, text_embeddings), (text_embeddings, image_embeddings))
    ]
    return np.array([share for recall in recalls if recall for share in (recall.r1, recall.r5, recall.r10)])
