"""The learning rate over the steps of a run."""

import math


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """The learning rate of a step, counted from 0: linear warm-up over the share `warmup`, then half a cosine to 0.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.
    """
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
