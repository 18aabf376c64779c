"""The weighted objectives of an image–text model: which ones, what they need, and their losses in a step."""

import inspect
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cyclic_cli import registry
from cyclic_cli.config import SCHEDULE, Term
from cyclic_cli.errors import UsageError
from cyclic_cli.models._aligned import REFINED
from cyclic_cli.models._joint import DECODED, OUTPUTS


class JointObjectives:
    """The objectives of a run, with their schedules and settings."""

    def __init__(self, terms: Sequence[Term], refine: bool = False) -> None:
        """
        Args:
            terms: The objectives.
            refine: Whether the model has residual heads.

        Raises:
            UsageError: An objective does not exist, has a bad setting, or is not for such models.
        """
        self.terms = list(terms)
        self.files = {term.name: _load(term, refine) for term in terms}
        self.needs = list(
            dict.fromkeys(need for one in self.files.values() for need in one.NEEDS)
        )  # outputs of a model

    @property
    def names(self) -> list[str]:
        return list(self.files)

    @property
    def train_decoders(self) -> bool:
        """Whether any of them trains the decoders."""
        return bool(DECODED.intersection(self.needs))

    @property
    def align(self) -> bool:
        """Whether any of them does more than reconstruct each modality from itself."""
        return self.needs != ["reconstruction"]

    @property
    def pairs_only(self) -> bool:
        """Whether none of them uses unpaired samples."""
        return len(self.inactive_without_pairs) == len(self.files)

    @property
    def inactive_without_pairs(self) -> list[str]:
        """The names of those that have no effect without paired samples."""
        return [name for name, one in self.files.items() if getattr(one, "PAIRS_ONLY", False)]

    def weights(self, progress: float, scarcity: float) -> dict[str, float]:
        """The weight of each objective.

        Args:
            progress: The share of the run's steps that are done, from 0 to 1.
            scarcity: The share of unpaired items, which multiplies the weights of objectives with `scarce: true`.
        """
        return {term.name: term.at(progress) * (scarcity if term.scarce else 1.0) for term in self.terms}

    def losses(self, outputs: dict[str, Any], batch: dict[str, Any], weights: dict[str, float]) -> dict[str, Tensor]:
        """The unweighted loss () of each objective whose weight is not 0, for a whole batch."""
        return {
            term.name: self.files[term.name].loss(outputs, batch, **term.settings)
            for term in self.terms
            if weights[term.name]
        }


def _load(term: Term, refine: bool) -> Any:
    """The file of an objective. Raises UsageError when it is for other models, or a setting does not fit."""
    file = registry.load("objectives", term.name, "objective")
    if not refine and set(REFINED).intersection(file.NEEDS):
        raise UsageError(
            f"The objective {term.name!r} compares residual heads with the closed form, and the model has none.",
            "Add --set refine=true, or leave it out.",
        )
    missing = [need for need in file.NEEDS if need not in (*OUTPUTS, *REFINED)]
    if missing or not getattr(file, "JOINT", True):
        raise UsageError(
            f"The objective {term.name!r} needs {', '.join(missing or ['pixels'])}, which no image–text model gives.",
            "Leave it out, or use --objective autoencode.",
        )
    check_settings(term, file)
    return file


def check_settings(term: Term, file: Any) -> None:
    """Raise UsageError unless the settings of a term are keyword arguments of `loss` in the file, above 0."""
    parameters = inspect.signature(file.loss).parameters.items()
    defaults = {name: one.default for name, one in parameters if one.kind is one.KEYWORD_ONLY}
    for name, value in term.settings.items():
        registry.check(name, [*defaults, *SCHEDULE, "scarce"], f"setting of objectives.{term.name}")
        is_whole = isinstance(defaults[name], int)
        is_number = isinstance(value, int if is_whole else (int, float)) and not isinstance(value, bool)
        if not (is_number and 0 < value < math.inf):
            wanted = "a whole number from 1" if is_whole else "a number above 0"
            raise UsageError(f"objectives.{term.name}.{name} cannot be {value!r}.", f"Give {wanted}.")
