"""The error of a run whose loss, validation metric or weights are NaN or infinite."""

from cyclic_cli.config import TrainConfig
from cyclic_cli.errors import CyclicError


def not_finite(what: str, step: int, config: TrainConfig, where: str = "") -> CyclicError:
    """The error that ends such a run. `what` and `where` complete the sentence; `step` counts from 1."""
    skip = "" if config.not_finite == "skip" else ", or leave such batches out with --set not_finite=skip"
    error = CyclicError(
        f"{what} is not finite at step {step}{where}.",
        f"Lower --lr, use --precision 32, or inspect the samples{skip}.",
    )
    error.everywhere = True
    return error
