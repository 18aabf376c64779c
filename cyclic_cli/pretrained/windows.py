"""Features of the windows of long texts become features of whole texts. Everything here can be exported to ONNX."""

from collections.abc import Callable

import torch
from torch import Tensor


def over_windows(tokens: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Return features (N, F) of texts: means over their windows, weighted by the numbers of tokens of these.

    Args:
        tokens: (N, W, L) as `tokens.Tokens.encode` returns them.
        encode: Returns the features (M, F) of windows (M, L). It must accept a window that is empty.
    """
    rows = tokens.flatten(0, 1)
    counts = (rows > 0).sum(1)
    if torch.compiler.is_compiling():  # an exported graph reads empty windows as well, and counts them with weight 0
        features = encode(rows)
    else:
        filled = counts > 0
        read = encode(rows[filled])
        features = read.new_zeros(rows.shape[0], read.shape[1]).index_put((filled.nonzero()[:, 0],), read)
    weights = counts.to(features.dtype).reshape(*tokens.shape[:2], 1)
    return (features.reshape(*tokens.shape[:2], -1) * weights).sum(1) / weights.sum(1).clamp(min=1)
