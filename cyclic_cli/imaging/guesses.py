"""What is assumed about a file that does not say how its pixels are to be shown, or says it wrongly.

An image with such an assumption is used, and `prepare` counts its assumptions. An assumption that may be wrong in a way
that a user would want to know belongs here. A defect with only one possible meaning does not.
"""

from collections.abc import Iterable, Mapping

GUESSES: dict[str, str] = {
    "own_range": "no stated range: shown from the 0.5th to the 99.5th percentile of the pixels",
    "window": "the stated window or VOI LUT is damaged or shows nothing: another stated one is used, else the 0.5th to "
    "the 99.5th percentile of the pixels",
    "narrow_window": "a LINEAR window is too narrow for fractional values: taken as LINEAR_EXACT",
    "voi_function": "an unknown VOI LUT Function: taken as LINEAR",
    "modality": "Rescale Slope is 0 or no number (taken as 1), or the Modality LUT is damaged (left out)",
    "nearest_frame": "the middle frame is blank: the nearest one that is not blank was used",
    "frame_count": "Number of Frames is more than the pixel data hold whole: the frames that are there were used",
    "cut_stream": "the file ends within the compressed pixel data: the part that is there, at least 98 %, was decoded",
    "stored_bits": "the compressed pixel data have 8 bits, though the header states more: used as they are",
}
"""All assumptions, each with its meaning for people.

Percentiles are the rule for DICOM files without a window and for NIfTI volumes, and are not counted there."""


def count_guesses(counts: dict[str, int], guesses: Iterable[str]) -> None:
    """Add assumptions to the counts by their key."""
    for guess in guesses:
        counts[guess] = counts.get(guess, 0) + 1


def lines_of(counts: Mapping[str, int]) -> list[str]:
    """A line for people about each assumption and the number of images that it was made about."""
    return [
        f"Guessed for {count} {'image' if count == 1 else 'images'}: {GUESSES[one]}." for one, count in counts.items()
    ]
