"""The interface between the training loop and a model with its data, losses and validation.

`Autoencoding` and `SelfSupervised` (images alone), `Alignment` and `ClosedFormAlignment` (several modalities), and
`Captioning` (a decoder of texts) implement it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from cyclic_cli.events import Report
from cyclic_cli.training.gradients import Plan

Tick = Callable[[int, int, str], None]  # called with the units done, the units in total and their name; may raise
ShowImages = Callable[[Tensor, Tensor], None]  # called with images (N, C, H, W) and their reconstructions


class Learner(Protocol):
    """The data, the model, the losses and the validation of a run."""

    samples: int  # for training
    patients: int
    batch_size: int  # of all processes together
    steps_per_epoch: int
    steps: int  # of the whole run
    module: Any  # the model as plain torch module
    kept: str  # the submodule of `module` that a checkpoint holds; empty: the whole module

    @property
    def architecture(self) -> dict[str, Any]:
        """What a checkpoint stores about the model besides its weights."""

    @property
    def portable_settings(self) -> dict[str, Any]:
        """Settings without paths of this machine. In a checkpoint they replace those of the run."""

    named_encoders: Mapping[str, list[str]]  # fingerprints of the pretrained encoders of the settings, by modality
    closed_form: Mapping[str, Any]  # what was chosen for the closed form; empty without one
    epochs_done: int  # set by the loop before it validates
    fold_ranks: list[float] | None  # of held-out pairs after 0, 1, … epochs; None: not measured yet
    has_solution: bool  # whether the initial model is a solution, which later epochs must beat

    @property
    def initialisation(self) -> str:
        """A phrase for messages: what is initialised, and from which data."""

    def initialise(self, tick: Tick, report: Report) -> None:
        """Initialise the model from the training data; only the first process needs to have its weights then."""

    def restore(self, architecture: dict[str, Any], encoders: Path, tick: Tick, report: Report) -> None:
        """Make the module that a saved state describes, before its weights are loaded.

        `encoders` is the folder of the pretrained encoders of the run.
        """

    def write_encoders(self, folder: Path) -> None:
        """Write frozen pretrained encoders into the folder of the run."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The parameters for the optimizer. The entry `share` multiplies the learning rate of a group."""

    def plan(self) -> Plan:
        """How the steps are computed on this hardware."""

    def set_up(self, model: Any, plan: Plan) -> None:
        """Take the model as Fabric wrapped it."""

    def close(self) -> None:
        """Free the threads."""

    def batch(self, step: int) -> Any:
        """The samples of the batch of a step (steps count from 0). `len` of it is the number of images."""

    def weights(self, step: int) -> dict[str, float]:
        """The weight of each objective in a step."""

    def losses(self, batch: Any, step: int) -> dict[str, float]:
        """This process's contribution to each loss of the batch. Its gradients are added to those of the parameters."""

    def gradient_norms(self) -> dict[str, float]:
        """The gradient norm of each objective, if measured since the last call; else empty."""

    def keys(self, batch: Any) -> list[str]:
        """The first 16 characters of the index keys of a batch's samples."""

    def validate(self, is_stopped: Callable[[], bool], show: ShowImages | None) -> dict[str, float] | None:
        """The validation metrics; empty without validation data, None when `is_stopped` returned True."""

    def is_better(self, val: dict[str, float], best: dict[str, float]) -> bool:
        """Whether the metrics `val` are better than those of the best checkpoint so far."""
