"""Trains MONAI's `AutoencoderKL` for a given time, as the comparison of `autoencoders.py` with `cyclic train`.

    python monai_autoencoder.py < REQUEST

The script runs in its own Python environment. It reads `train.npy`, `val.npy` and `test.npy`, each (N, 1, H, W) uint8,
from the current folder. The request is a JSON object with `folder`, `channels` and `side` of the code, `seconds`,
`seed`, `loss` (L1 or MSE) and `chosen` (null: choose by trials). The script prints the validation error, the chosen
settings and the time. The error is the pixel MSE on [0, 1] of clamped reconstructions from the mean code.
Reconstructions of the test images, (N, 1, H, W) float32 in [0, 1], are written to `test.npy` in `folder`.

The network has no attention and one residual block per level. It halves the image until the code has `side` × `side`
pixels and `channels` channels. The recipe follows MONAI's tutorials, without the adversarial and perceptual losses,
which do not reduce the pixel error: the L1 loss (or the squared error on request) plus 1e-6 times the KL divergence,
and Adam. A cosine schedule over the time and gradient clipping are added. Short trials with the same loss choose the
settings. The memory format is chosen by speed. Width, batch size and learning rate (the tutorials use 1e-4) are chosen
by the error on a part of the validation images. Trials and validation do not count towards the time.
"""

import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import AutoencoderKL
from torch import Tensor
from torch.nn import functional

WIDTHS = (32, 16)  # channels of the first level; the second has twice as many, all further levels four times as many
DIVERGENCE = 1e-6
CLIP = 1.0  # maximum norm of the gradient
BATCH_SIZES = (2, 4, 8)
RATES = (1e-4, 3e-4, 1e-3)
TRIAL = 0.1  # duration of a trial as a fraction of the time
TRIAL_IMAGES = 64  # validation images of a trial
EVALUATION_BATCH = 8
LOSSES = {"L1": functional.l1_loss, "MSE": functional.mse_loss}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Run:
    """One training run. All randomness depends on the seed alone."""

    def __init__(self, images: Tensor, request: dict, layout: str, width: int, batch_size: int, rate: float) -> None:
        torch.manual_seed(request["seed"])
        levels = int(math.log2(images.shape[-1] // request["side"])) + 1
        self.layout, self.batch_size, self.rate = FORMATS[layout], batch_size, rate
        self.model = AutoencoderKL(
            spatial_dims=2, in_channels=1, out_channels=1, latent_channels=request["channels"], num_res_blocks=1,
            channels=(width, 2 * width, *[4 * width] * levels)[:levels], attention_levels=(False,) * levels,
            norm_num_groups=16, with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False,
        ).to(memory_format=self.layout)  # fmt: skip
        self.images, self.loss = images, LOSSES[request["loss"]]
        self.optimizer = torch.optim.Adam(self.model.parameters(), rate)
        self.seen = 0

    def train(self, seconds: float) -> "Run":
        """Train for the given number of seconds, and for at least one step."""
        began = time.monotonic()
        order = torch.empty(0, dtype=torch.int64)
        while self.seen == 0 or time.monotonic() - began < seconds:
            if not len(order):
                order = torch.randperm(len(self.images))
            chosen, order = order[: self.batch_size], order[self.batch_size :]
            self.step(self.images[chosen], (time.monotonic() - began) / seconds)
            self.seen += len(chosen)
        return self

    def step(self, stored: Tensor, done: float) -> None:
        self.optimizer.param_groups[0]["lr"] = self.rate * 0.5 * (1 + math.cos(math.pi * min(1, done)))
        image = as_float(stored).contiguous(memory_format=self.layout)
        reconstruction, mean, deviation = self.model(image)
        variance = deviation.square()
        divergence = 0.5 * (mean.square() + variance - variance.log() - 1).flatten(1).sum(1).mean()
        (self.loss(reconstruction, image) + DIVERGENCE * divergence).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.inference_mode()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Reconstruct images (N, 1, H, W) uint8 from the mean of the code, as float32 in [0, 1]."""
        batches = [as_float(batch).contiguous(memory_format=self.layout) for batch in images.split(EVALUATION_BATCH)]
        return torch.cat([self.model.reconstruct(batch).clamp(0, 1).contiguous() for batch in batches])

    def error(self, images: Tensor) -> float:
        """Pixel MSE on [0, 1]."""
        self.model.eval()
        found = (self.reconstruct(images) - as_float(images)).square().mean().item()
        self.model.train()
        return found


def as_float(images: Tensor) -> Tensor:
    return images.float() / 255


def choose(images: Tensor, validation: Tensor, request: dict) -> dict:
    """Choose memory format, width, batch size and learning rate by short trials, one setting after the other."""
    first = {"width": WIDTHS[0], "batch_size": BATCH_SIZES[1], "rate": RATES[0]}
    chosen = {"layout": max(FORMATS, key=lambda layout: speed(Run(images, request, layout, **first))), **first}

    def error(**tried: float) -> float:
        run = Run(images, request, **(chosen | tried)).train(TRIAL * request["seconds"])
        return run.error(validation[:TRIAL_IMAGES])

    for setting, values in {"width": WIDTHS, "batch_size": BATCH_SIZES, "rate": RATES}.items():
        chosen[setting] = min(values, key=lambda value, setting=setting: error(**{setting: value}))
    return chosen


def speed(run: Run, steps: int = 3) -> float:
    """Images per second, without the first step."""
    batch = run.images[: run.batch_size]
    run.step(batch, done=0)
    began = time.monotonic()
    for _ in range(steps):
        run.step(batch, done=0)
    return steps * len(batch) / (time.monotonic() - began)


def main() -> None:
    request = json.load(sys.stdin)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    train, val, test = (torch.from_numpy(np.load(f"{split}.npy")) for split in ("train", "val", "test"))
    chosen = request["chosen"] or choose(train, val, request)
    run = Run(train, request, **chosen)
    began = time.monotonic()
    run.train(request["seconds"])
    seconds = time.monotonic() - began
    error = run.error(val)
    run.model.eval()
    np.save(Path(request["folder"]) / "test.npy", run.reconstruct(test).numpy())
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    print(json.dumps({"val": error, **chosen, "parameters": parameters, "images": run.seen, "seconds": seconds}))


if __name__ == "__main__":
    main()
