"""What is assumed about a file that does not say how its pixels are to be shown, or says it wrongly.

An image with such an assumption is used, and `prepare` counts its assumptions. An assumption that may be wrong in a way
that a user would want to know belongs here. A defect with only one possible meaning does not.
"""

GUESSES: dict[str, str] = {
    "own_range": "no stated range: shown from the 0.5th to the 99.5th percentile of the pixels",
}
"""All assumptions, each with its meaning for people."""
