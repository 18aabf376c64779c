"""Stored values of one frame → grey levels in [0, 1], as a viewer shows them: steps 2 to 6 of the package's list."""

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.uid import ExplicitVRBigEndian

from cyclic_cli.dicom.header import first_number, whole_number
from cyclic_cli.errors import Rejected

PERCENTILES = (0.5, 99.5)  # of the pixels that are not padding, where the file states no window
LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow's mode L


def render(header: Dataset, stored: np.ndarray, frame: int) -> np.ndarray:
    """Steps 2 to 6 of the module's list: stored values to (H, W) float32 in [0, 1]."""
    photometric = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric == "PALETTE COLOR":
        if header.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:
            _swap_palette(header)
        colour = apply_color_lut(stored, header)
        return _luminance(colour, 2 ** (8 * colour.dtype.itemsize) - 1)
    if stored.ndim == 3:
        return _luminance(stored, 2 ** whole_number(header, "BitsStored", 8 * stored.dtype.itemsize) - 1)
    padding = _padding(header, stored)
    groups = _frame_groups(header, frame)
    modality = _modality(header, groups, stored)
    grey = _values_of_interest(header, groups, modality, padding)
    if stored.dtype.kind == "f":
        np.nan_to_num(grey, copy=False)
    if photometric == "MONOCHROME1":
        np.subtract(1, grey, out=grey)
    if padding is not None:
        grey[padding] = 0
    return grey


def _swap_palette(header: Dataset) -> None:
    """Turn a palette's 16-bit words, which pydicom hands out as they stand in the file, to little endian."""
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTableData"
        words = header.get(name)
        if isinstance(words, bytes) and int(header[f"{colour}PaletteColorLookupTableDescriptor"].value[2]) > 8:
            header[name].value = np.frombuffer(words, ">u2").astype("<u2").tobytes()


def _luminance(colour: np.ndarray, largest: int) -> np.ndarray:
    """(H, W, 3) integers up to `largest` to (H, W) float32 in [0, 1]."""
    return np.clip(colour[..., :3].astype(np.float32) @ LUMINANCE / np.float32(largest), 0, 1)


def _padding(header: Dataset, stored: np.ndarray) -> np.ndarray | None:
    """Where the image was padded to its rectangle: (H, W) bool, or None."""
    if "PixelPaddingValue" not in header or stored.dtype.kind == "f":
        return None
    # US and SS are both possible, and files disagree with themselves: compare in the stored values' own kind.
    value = np.array(int(header.PixelPaddingValue)).astype(stored.dtype)
    limit = np.array(int(header.get("PixelPaddingRangeLimit", header.PixelPaddingValue))).astype(stored.dtype)
    mask = (stored >= min(value, limit)) & (stored <= max(value, limit))
    return mask if mask.any() and not mask.all() else None


def _frame_groups(header: Dataset, frame: int) -> list[Dataset]:
    """The functional groups that hold for a frame of an enhanced image: its own, then the shared ones."""
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    return ([own[frame]] if frame < len(own) else []) + list(shared[:1])


def _group(groups: list[Dataset], name: str) -> Dataset | None:
    for group in groups:
        if group.get(name):
            return group[name].value[0]  # type: ignore[no-any-return]
    return None


def _modality(header: Dataset, groups: list[Dataset], stored: np.ndarray) -> np.ndarray:
    """Stored values to what they mean (Hounsfield units, optical density ...): (H, W) float32."""
    transform = _group(groups, "PixelValueTransformationSequence")
    return np.asarray(apply_modality_lut(stored, transform or header), dtype=np.float32)


def _values_of_interest(
    header: Dataset, groups: list[Dataset], values: np.ndarray, padding: np.ndarray | None
) -> np.ndarray:
    """The stated VOI LUT or window, else robust percentiles: (H, W) float32 in [0, 1]."""
    stated = _group(groups, "FrameVOILUTSequence") or header
    if stated.get("VOILUTSequence"):
        return _voi_lut(stated.VOILUTSequence[0], values)
    center, width = first_number(stated.get("WindowCenter")), first_number(stated.get("WindowWidth"))
    if center is not None and width is not None and width > 0:
        return window(values, center, width, str(stated.get("VOILUTFunction", "LINEAR") or "LINEAR"))
    shown = values if padding is None else values[~padding]
    shown = shown[np.isfinite(shown)]
    if shown.size == 0:
        raise Rejected("blank")
    low, high = (float(value) for value in np.percentile(shown, PERCENTILES))
    if high <= low:  # nearly everything has one value: a mark on an empty field
        low, high = float(shown.min()), float(shown.max())
    scaled = (values - np.float32(low)) / np.float32(max(high - low, 1e-30))
    return np.clip(np.nan_to_num(scaled, nan=0.0), 0, 1, dtype=np.float32)


def _voi_lut(item: Dataset, values: np.ndarray) -> np.ndarray:
    """PS3.3 C.11.2.1.1: values below the first mapped one take the first entry, above the last one the last."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    count = entries or 2**16
    data = item["LUTData"].value
    table = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data)
    table = table.astype(np.uint16)[:count]
    if first > 2**15 - 1 and values.min() < 0:
        first -= 2**16  # the descriptor was read unsigned although the values are signed
    index = np.clip(values - first, 0, len(table) - 1).astype(np.int64)
    return np.clip(table[index] / np.float32(2**bits - 1), 0, 1).astype(np.float32)


def window(values: np.ndarray, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Values to [0, 1] by a window (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Args:
        values: (H, W) float, after the modality transform.
        center: Window Center, in the same unit.
        width: Window Width, above 0; LINEAR asks for at least 1.
        function: LINEAR, LINEAR_EXACT or SIGMOID; anything else counts as LINEAR.
    """
    shifted = values.astype(np.float32) - np.float32(center)
    if function == "SIGMOID":
        return (1 / (1 + np.exp(-4 * shifted / np.float32(width)))).astype(np.float32)
    if function == "LINEAR_EXACT":
        return np.clip(shifted / np.float32(width) + 0.5, 0, 1)
    if width <= 1:  # the formula divides by width - 1; a width of 1 is a threshold at center - 0.5
        return (shifted > -0.5).astype(np.float32)
    return np.clip((shifted + 0.5) / np.float32(width - 1) + 0.5, 0, 1)
