"""Maps and vectors of tokens become one vector."""

import pytest
import torch
from torch.nn import functional

from cyclic_cli.pretrained.pooling import highest_of_tokens, mean_of_tokens, pooled_map, pooled_patches


@pytest.mark.parametrize(("height", "width"), [(4, 4), (7, 7), (5, 8), (1, 1), (1, 3)])
def test_maps_are_pooled_as_torch_pools_their_signed_square_roots(height: int, width: int) -> None:
    maps = torch.randn(2, 3, height, width, dtype=torch.float64)
    expected = functional.adaptive_avg_pool2d(maps.sign() * maps.abs().sqrt(), 2).flatten(1)
    torch.testing.assert_close(pooled_map(maps), expected)
    patches = maps.flatten(2).transpose(1, 2)
    torch.testing.assert_close(pooled_patches(patches, height, width), expected)


def test_zeros_have_no_gradient() -> None:
    maps = torch.tensor([[[[0.0, 4.0], [-4.0, 1.0]]]], requires_grad=True)
    pooled_map(maps).sum().backward()
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad.flatten(), torch.tensor([0.0, 0.25, 0.25, 0.5]))


def test_padding_is_not_pooled() -> None:
    vectors, mask = torch.randn(2, 5, 3), torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()
    for row, length in ((0, 3), (1, 1)):
        torch.testing.assert_close(mean_of_tokens(vectors, mask)[row], vectors[row, :length].mean(0))
        torch.testing.assert_close(highest_of_tokens(vectors, mask)[row], vectors[row, :length].amax(0))
