"""Compressed or plain pixel data of one frame → stored values, by the first installed decoder that manages."""

import numpy as np
import pydicom.pixels
from pydicom.dataset import Dataset

from cyclic_cli.errors import Rejected


def decode(header: Dataset, frame: int) -> np.ndarray:
    """One frame's stored values: (H, W), or (H, W, 3) with YBR already turned into RGB."""
    try:
        stored = pydicom.pixels.pixel_array(header, index=frame)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # decoders raise almost anything on damaged data, panics of Rust included
        words = str(error)
        if "missing dependencies" in words or "does not support" in words:
            raise Rejected("no_decoder", f"transfer syntax {header.file_meta.TransferSyntaxUID.name}") from error
        raise Rejected("broken_pixels", f"the pixel data cannot be decoded ({type(error).__name__})") from error
    return stored
