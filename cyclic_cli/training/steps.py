"""One optimizer step: learning rate, losses of a batch, clipped gradient, update."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from cyclic_cli.config import TrainConfig
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import CyclicError
from cyclic_cli.training.learner import Learner
from cyclic_cli.training.progress import RunProgress
from cyclic_cli.training.schedule import learning_rate
from cyclic_cli.training.setup import Network

NAMED = 16  # samples of a batch that an error names
SKIPS = 20  # consecutive batches without a finite loss; after that many, the weights are the likely cause


@dataclass(frozen=True)
class StepResult:
    """The result of a step."""

    batch: Any  # the samples, as the learner describes them
    losses: dict[str, float]  # of the whole batch, by objective, and their weighted sum `total`
    lr: float
    is_finite: bool  # otherwise the weights were not changed


class Stepper:
    """Takes the steps of a run, and counts them in its progress."""

    def __init__(
        self, ranks: Ranks, config: TrainConfig, learner: Learner, network: Network, progress: RunProgress
    ) -> None:
        self.ranks, self.config, self.learner = ranks, config, learner
        self.network, self.progress = network, progress

    def step(self) -> StepResult:
        """Take the next step.

        Raises:
            CyclicError: the loss or its gradient is not finite, and such steps are not to be skipped; or the last
                `SKIPS` steps were skipped.
        """
        number, progress = self.progress.step, self.progress
        batch = self.learner.batch(number)
        lr = self._set_learning_rate(number)
        losses = self._of_all_processes(self.learner.losses(batch, number), number)
        is_finite = math.isfinite(losses["total"]) and self._clip()
        if is_finite:
            self.network.optimizer.step()
        elif self.config.not_finite == "stop":
            where = f", in a batch of {named_samples(self.learner.keys(batch))}"
            raise not_finite("The loss", number + 1, self.config, where)
        self.network.optimizer.zero_grad()
        progress.step += 1
        progress.skipped = 0 if is_finite else progress.skipped + 1
        if is_finite:
            progress.add_losses(losses)
        return StepResult(batch, losses, lr, is_finite)

    def check_skipped(self) -> None:
        """Raise CyclicError when the last `SKIPS` steps were all skipped."""
        if self.progress.skipped == SKIPS:
            what = f"The loss of each of the last {SKIPS} batches"
            raise not_finite(what, self.progress.step, self.config)

    def _set_learning_rate(self, step: int) -> float:
        lr = learning_rate(step, self.learner.steps, self.config.lr or 0.0, self.config.warmup or 0.0)
        for group in self.network.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        return lr

    def _of_all_processes(self, losses: dict[str, float], step: int) -> dict[str, float]:
        """The losses of a whole batch from the parts of all processes, with their weighted sum `total`."""
        values = torch.tensor(list(losses.values()), dtype=torch.float64, device=self.ranks.fabric.device)
        losses = dict(zip(losses, self.ranks.summed(values).tolist(), strict=True))
        weights = self.learner.weights(step)
        return losses | {"total": sum(weights[name] * loss for name, loss in losses.items())}

    def _clip(self) -> bool:
        """Clip the norm of the gradient. Returns whether it is finite."""
        norm = self.ranks.fabric.clip_gradients(
            self.network.model,
            self.network.optimizer,
            max_norm=self.config.gradient_clip,
            error_if_nonfinite=False,
        )
        return bool(norm.isfinite())


def named_samples(keys: list[str]) -> str:
    """Some samples of a batch in words, by the first characters of their index keys."""
    return f"the samples {', '.join(keys[:NAMED])}{' ...' if len(keys) > NAMED else ''}"


def not_finite(what: str, step: int, config: TrainConfig, where: str = "") -> CyclicError:
    """The error that ends such a run. `what` and `where` complete the sentence; `step` counts from 1."""
    skip = "" if config.not_finite == "skip" else ", or leave such batches out with --set not_finite=skip"
    error = CyclicError(
        f"{what} is not finite at step {step}{where}.",
        f"Lower --lr, use --precision 32, or inspect the samples{skip}.",
    )
    error.everywhere = True
    return error
