"""How many epochs help, where a dataset has no validation part: learned from folds over the known pairs.

In each fold the pairs of some patients are held out. The closed form is fitted to the other pairs and trained on them
as in the run, and after each epoch the held-out pairs are ranked. The held-out samples are in neither pool of unpaired
samples. Without enough patients, with several processes, or where encoders are trained too, nothing is measured, and
the closed form is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cyclic_cli.alignment.cycle import Unpaired, completed_map
from cyclic_cli.alignment.folds import Ranking, held_out
from cyclic_cli.alignment.maps import MODALITIES, Blocks, fit_map
from cyclic_cli.data.mixture import Mixture
from cyclic_cli.training.fixed_codes import expansion, head_of
from cyclic_cli.training.schedule import learning_rate

FOLDS = 5
LEAST_PATIENTS = 2 * FOLDS


def ranks_of_epochs(learner: Any) -> list[float]:
    """The geometric mean rank of held-out partners after 0, 1, … epochs; empty where it cannot be measured.

    `learner` is a `ClosedFormAlignment` whose samples are codes.
    """
    config, mixture = learner.config, learner.mixture
    patients = learner.data.patient_of[mixture.paired]
    if not learner.steps or learner.ranks.world > 1 or not learner.all_frozen:
        return []
    if len(set(patients.tolist())) < LEAST_PATIENTS:
        return []
    logs: list[list[float]] = []
    weights: list[int] = []
    for held in held_out(patients, np.random.default_rng(config.seed)):
        logs.append(list(_log_ranks(learner, held)))
        weights.append(len(held))
    return np.exp(np.average(logs, axis=0, weights=weights)).tolist()


def _log_ranks(learner: Any, held: np.ndarray) -> Iterator[float]:
    """Yield the mean log rank of the held-out pairs (M,) before training, and after each epoch."""
    config, whole = learner.config, learner.mixture
    outside = np.setdiff1d(np.arange(len(whole.paired)), held)
    one = copy.copy(learner)
    one.mixture = _without(
        whole, held, set(learner.data.patient_of[whole.paired[held]]), learner.data.patient_by_sample
    )
    one.module = copy.deepcopy(learner.module)
    one.model = one.module
    codes = {name: whole.pools[name].load(whole.rows[name]).numpy() for name in MODALITIES}
    known = {name: codes[name][outside] for name in MODALITIES}
    if learner.closed_form.get("cycle", {}).get("kept") == "return":
        sizes = {name: len(numbers) for name, numbers in one.mixture.unpaired.items()}
        unpaired = Unpaired(sizes, _unpaired_codes(one.mixture)).sample().codes
        blocks = completed_map(learner.setting, known, unpaired, learner.closed_form["cycle"]["weight"])
    else:
        blocks = fit_map(learner.setting, *known.values())
    _set_closed_form(one.module, _padded(blocks, one.module.dims), known)
    groups = learner.groups[held]
    optimizer = torch.optim.AdamW(one.parameter_groups(), lr=config.lr or 0.0, weight_decay=config.weight_decay or 0.0)
    yield _held_out_rank(one.module, codes, held, groups)
    for step in range(learner.steps):
        lr = learning_rate(step, learner.steps, config.lr or 0.0, config.warmup or 0.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["share"]
        one.losses(one.batch(step), step)
        torch.nn.utils.clip_grad_norm_(one.module.parameters(), config.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % learner.steps_per_epoch == 0:
            yield _held_out_rank(one.module, codes, held, groups)


def _without(whole: Mixture, held: np.ndarray, patients: set[str], patient_by_sample: dict[str, str]) -> Mixture:
    """The mixture without the pairs at the places `held` (M,), and without unpaired items of their `patients`."""
    part = copy.copy(whole)
    part.unpaired = {}
    for name, numbers in whole.unpaired.items():
        owners = [patient_by_sample.get(sample) for sample in whole.pools[name].sample_keys[numbers].tolist()]
        part.unpaired[name] = numbers[[owner not in patients for owner in owners]]
    kept = np.setdiff1d(np.arange(len(whole.paired)), held)
    part.paired = whole.paired[kept]
    part.rows = {name: numbers[kept] for name, numbers in whole.rows.items()}
    return part


def _unpaired_codes(mixture: Mixture) -> Callable[[str, np.ndarray], np.ndarray]:
    return lambda name, numbers: mixture.pools[name].load(mixture.unpaired[name][numbers]).numpy()


def _padded(blocks: Blocks, dims: Sequence[int]) -> Blocks:
    """The blocks with the dimensions of the model. Fewer pairs span fewer canonical variates; others are zero."""
    return tuple(
        replace(one, matrix={name: np.pad(m, ((0, 0), (0, size - m.shape[1]))) for name, m in one.matrix.items()})
        for one, size in zip(blocks, dims, strict=True)
    )


@torch.no_grad()
def _set_closed_form(module: Any, blocks: Blocks, codes: dict[str, np.ndarray]) -> None:
    """Set heads to `blocks`, and fit expansions to the pairs of a fold, whose `codes` are (M, code) by modality."""
    every = {name: np.arange(len(codes[name])) for name in MODALITIES}
    for name in MODALITIES:
        for layer, (weight, bias) in (
            (module.heads[name], head_of(blocks, name)),
            (module.expansions[name], expansion(blocks, codes, every, name)),
        ):
            layer.weight.copy_(torch.from_numpy(np.asarray(weight.T, np.float32)))
            layer.bias.copy_(torch.from_numpy(np.asarray(bias, np.float32)))


@torch.no_grad()
def _held_out_rank(module: Any, codes: dict[str, np.ndarray], held: np.ndarray, groups: np.ndarray) -> float:
    image, text = (module.embed(name, torch.from_numpy(codes[name][held])).numpy() for name in MODALITIES)
    return Ranking(groups).mean_log_rank(image @ text.T)
