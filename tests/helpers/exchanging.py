"""Tests exchanges between three processes against a single one. `test_distributed` starts it with torchrun."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cyclic_cli import distributed
from cyclic_cli.distributed import Ranks
from cyclic_cli.errors import CyclicError
from cyclic_cli.training.gradients import Gradients, Plan

PLAN = Plan(
    device="cpu", precision="32", processes=3, sharded=False,
    threads=1, parallel="operations", side_by_side=1, micro_batch=64,
    memory_format="contiguous", fuse=False, keep_memory=False, compile=False,
)  # fmt: skip


class Network(nn.Module):
    """Two layers; no loss depends on the second."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.unused = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"code": self.layer(image.flatten(1)), "unused": self.unused(image.flatten(1))}


def contrast(outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """A loss that depends on the whole batch: it compares every code with every image."""
    codes = nn.functional.normalize(outputs["code"], dim=1)
    images = nn.functional.normalize(batch["image"].flatten(1)[:, :4], dim=1)
    return nn.functional.cross_entropy(codes @ images.T / 0.1, torch.arange(len(codes)))


def square(outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """A loss that is a mean over samples."""
    return (outputs["code"] - batch["image"].flatten(1)[:, :4]).square().mean()


OBJECTIVES = {
    "contrast": SimpleNamespace(loss=contrast, PER_SAMPLE=False),
    "square": SimpleNamespace(loss=square, PER_SAMPLE=True),
}
WEIGHTS = {"contrast": 0.7, "square": 0.3}


def check_gradients(ranks: Ranks, samples: int) -> None:
    images = torch.rand(samples, 1, 2, 3, generator=torch.Generator().manual_seed(1))
    network = Network()
    model = ranks.fabric.setup_module(network)
    gradients = Gradients(
        ranks,
        model,
        OBJECTIVES,
        WEIGHTS,
        PLAN,
        lambda chosen, epoch: ({"image": images[chosen]}, {}),  # type: ignore[arg-type]
    )
    values = torch.tensor(list(gradients(np.arange(samples), 0).values()), dtype=torch.float64)
    alone = Network()
    outputs, batch = alone(images), {"image": images}
    losses = [contrast(outputs, batch), square(outputs, batch)]
    (0.7 * losses[0] + 0.3 * losses[1]).backward()
    torch.testing.assert_close(ranks.summed(values), torch.stack(losses).detach().double(), rtol=1e-6, atol=1e-7)
    for found, wanted in zip(network.layer.parameters(), alone.layer.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-5, atol=1e-7)


def check_gathering(ranks: Ranks) -> None:
    whole = torch.rand(5, 2, generator=torch.Generator().manual_seed(2))
    own = whole[ranks.part(np.arange(5))].requires_grad_()
    together = ranks.gathered(own, 5)
    assert torch.equal(together.detach(), whole)
    (together * torch.arange(10.0).view(5, 2)).sum().backward()
    wanted = 3 * torch.arange(10.0).view(5, 2)[ranks.part(np.arange(5))]  # summed over the three processes
    assert torch.equal(own.grad, wanted)  # type: ignore[arg-type]


def check_decisions(ranks: Ranks) -> None:
    assert ranks.agreed(lambda: f"of {ranks.rank}") == "of 0"

    def refuse() -> None:
        raise CyclicError("No.", "A hint.")

    with pytest.raises(CyclicError, match=r"^No\.$") as caught:
        ranks.agreed(refuse)
    assert caught.value.hint == "A hint."


def check_failures(ranks: Ranks) -> None:
    """An error of one process is raised in all, wherever the others wait; the next exchange is undisturbed."""

    def fails(rank: int) -> None:
        if ranks.rank == rank:
            raise CyclicError(f"No {rank}.", "A hint.")

    def before_a_sum(rank: int) -> None:
        fails(rank)
        ranks.added(np.ones(3))

    def before_a_decision(rank: int) -> None:
        fails(rank)
        ranks.agreed(lambda: None)

    def in_a_decision(rank: int) -> None:
        ranks.agreed(lambda: fails(0))

    def at_the_end(rank: int) -> None:
        ranks.added(np.ones(3))
        fails(rank)

    for work in (before_a_sum, before_a_decision, in_a_decision, at_the_end):
        for rank in range(1 if work is in_a_decision else 3):
            with pytest.raises(CyclicError, match=rf"^No {rank}\.$") as caught:
                ranks.together(lambda work=work, rank=rank: work(rank))  # type: ignore[misc]
            assert caught.value.hint == "A hint."
            assert caught.value.everywhere


def check_sums(ranks: Ranks) -> None:
    own = np.full(4, 2.0**-40 if ranks.rank else 1.0)
    total = ranks.together(lambda: ranks.added(own))
    assert (total == 1 + 2.0**-39).all()  # needs float64
    assert own[0] in (1.0, 2.0**-40)  # was not overwritten
    rows = ranks.added(np.full((2, 3), ranks.rank, np.float32))
    assert (rows.dtype, rows.tolist()) == (np.float32, [[3.0] * 3] * 2)


def main() -> None:
    ranks = distributed.launch("cpu", "32")
    assert ranks.world == 3
    check_gathering(ranks)
    check_decisions(ranks)
    check_failures(ranks)
    check_sums(ranks)
    for samples in (7, 3, 2, 1):  # uneven, even, fewer than processes
        check_gradients(ranks, samples)
    sys.stdout.write(f"rank{ranks.rank}\n")


main()
