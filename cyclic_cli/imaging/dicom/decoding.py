"""Decodes the pixel data of one frame, compressed or not, to stored values.

The available decoders are tried in order, and the first that succeeds is used. pydicom calls them. What pydicom lacks
is added here: JPEG Extended of 12 bits by GDCM, progressive JPEG, HTJ2K by Pillow, and the transfer syntaxes that hold
uncompressed or deflated frames in fragments (PS3.5 A.4.11 and A.4.13). Where a stream contradicts the header about its
transfer syntax, bits or colour space, the stream is right.

JPEG 2000 and JPEG baseline can also be decoded at a lower resolution, which `reductions` does.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders import HTJ2KDecoder, HTJ2KLosslessDecoder, HTJ2KLosslessRPCLDecoder, pillow
from pydicom.pixels.decoders.base import Decoder, DecodeRunner, JPEGExtended12BitDecoder
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
)

from cyclic_cli.errors import Rejected
from cyclic_cli.imaging.dicom.header import PADDING, PHOTOMETRIC, code_of, padding_limits, whole_number
from cyclic_cli.imaging.dicom.streams import (
    PROGRESSION,
    SOI,
    SPECTRAL_SELECTION,
    Fragment,
    StreamHeader,
    frames_of,
    is_cut,
    joined,
    stream_header,
    syntax_of,
    without_colour_marks,
)

PREFERRED = ("pylibjpeg", "pyjpegls", "pillow", "gdcm", "gdcm_12_bit", "pillow_htj2k", "pydicom")
"""Decoders in the order in which they are tried, the fastest first. Each supports some transfer syntaxes."""
DESCRIPTION = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
)
"""The attributes that decoders need."""
MOST_FRAMES = 100  # a declared number of frames that is that many times the number of those that are there is absurd
ENCAPSULATED_UNCOMPRESSED = UID("1.2.840.10008.1.2.1.98")
DEFLATED_FRAMES = UID("1.2.840.10008.1.2.8.1")
PARTIAL_RANGE = np.array([[0.2568, 0.5041, 0.0979], [-0.1482, -0.2910, 0.4392], [0.4392, -0.3678, -0.0714]])
CELLS_OF_JPEG_2000 = 1.85  # minimum number of cells per sample pixel, along a side, before the antialiased resize
ROUNDING = 0.5  # mean change of a value by rounding, per level of JPEG 2000's integer wavelet: 0.25 per direction
ALIASES_BELOW = 3.0  # cells per sample pixel below which sharp edges alias
CELLS_OF_JPEG = {8: 3.0, 4: 3.0, 2: 2.6}  # minimum number of cells per sample pixel for each scale of the DCT


@dataclass(frozen=True)
class Reduced:
    """Stored values of one frame, possibly at a lower resolution.

    Along either axis, cell k of `stored` (H', W') covers the original's pixels from (k - `edge`) · `scale` to
    (k + 1 - `edge`) · `scale`. Sharp edges alias where there are fewer cells per sample pixel than `aliases_below`.
    """

    stored: np.ndarray
    scale: int
    edge: float = 0.0
    aliases_below: float = 0.0


def decode(header: Dataset, frame: int) -> np.ndarray:
    """The stored values of one frame: (H, W), or (H, W, 3) in RGB. The array may be a view of the file.

    Raises:
        Rejected: no_decoder or broken_pixels.
    """
    if not is_encapsulated(header):
        return _clean(header, _attempt(get_decoder(header.file_meta.TransferSyntaxUID), header, frame, ""))
    alone = _frame_alone(header, frame)
    syntax = alone.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise _without_decoder(syntax) from None
    names = [""] if decoder.is_native else sorted(decoder.available_plugins, key=PREFERRED.index)
    for name in names:
        with suppress(Rejected):
            stored = _clean(alone, _attempt(decoder, alone, 0, name))
            if stored.dtype.itemsize == 1 and whole_number(header, "BitsAllocated") == 16:
                return stored.astype(np.int16 if whole_number(header, "PixelRepresentation") else np.uint16)
            return stored
    if not names:
        raise _without_decoder(syntax)
    raise Rejected("broken_pixels", "the compressed pixel data are damaged: no decoder can decode them")


def _attempt(decoder: Decoder, header: Dataset, frame: int, plugin: str) -> np.ndarray:
    options: dict[str, Any] = {"view_only": decoder.is_native, "correct_unused_bits": False}  # `_clean` corrects them
    partial = str(header.PhotometricInterpretation).startswith("YBR_PARTIAL")
    if partial:  # retired by the standard, and not supported by pydicom
        options |= {
            "photometric_interpretation": header.PhotometricInterpretation.replace("PARTIAL", "FULL"),
            "raw": True,
        }
    try:
        stored, _ = decoder.as_array(header, index=frame, decoding_plugin=plugin, **options)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # decoders raise almost anything on damaged data, including panics of Rust code
        message = "the header's numbers of bits, samples or pixels do not fit the pixel data"
        if code_of(header, "PhotometricInterpretation") not in PHOTOMETRIC:
            message = "the photometric interpretation is not one of the standard"
        raise Rejected("broken_pixels", message) from error
    return _from_partial_range(stored) if partial else stored


def _from_partial_range(stored: np.ndarray) -> np.ndarray:
    """Convert YBR_PARTIAL of 8 bits (..., 3), with luminance from 16 to 235, to RGB (PS3.3 C.7.6.3.1.2 of 2016)."""
    colour = (stored - np.array([16, 128, 128])) @ np.linalg.inv(PARTIAL_RANGE).T
    return np.rint(np.clip(colour, 0, 255)).astype(np.uint8)


def frame_count(header: Dataset) -> int:
    """The number of frames that the pixel data hold whole, at most as many as the header declares.

    Raises:
        Rejected: broken_pixels, where there is none.
    """
    count = max(1, whole_number(header, "NumberOfFrames", 1))
    if is_encapsulated(header):
        whole = len(_frames(header))
    else:
        size = len(next(header[name].value or b"" for name in PADDING if name in header))
        whole = 8 * size // max(1, frame_bits(header))
        if not whole:
            needed = -(-frame_bits(header) // 8)
            raise Rejected("broken_pixels", f"the pixel data are cut short: {size} of {needed} bytes")
    if count > MOST_FRAMES * whole:
        raise Rejected("broken_pixels", f"{count} frames are declared, {whole} are there")
    return min(count, whole)


def guesses_of(header: Dataset, frame: int) -> tuple[str, ...]:
    """The assumptions about the stream of a frame, keys of `guesses.GUESSES`."""
    if not is_encapsulated(header):
        return ()
    fragments = _frames(header)[frame]
    found = stream_header(joined(header.PixelData, fragments))
    is_narrow = found and found.bits <= 8 and whole_number(header, "BitsStored") > 8
    return ("cut_stream",) * is_cut(fragments) + ("stored_bits",) * bool(is_narrow)


def _without_decoder(syntax: UID) -> Rejected:
    """The error for a transfer syntax, which is named only if it is a UID."""
    name = syntax.name if re.fullmatch(r"[0-9.]{1,64}", syntax) else "of the header is no UID"
    return Rejected("no_decoder", f"transfer syntax {name}")


def _frames(header: Dataset) -> list[list[Fragment]]:
    """The fragments of each frame. They are found once, since a file may have thousands of frames."""
    found: list[list[Fragment]] | None = header.__dict__.get("frames_found")
    if found is None:
        found = header.__dict__["frames_found"] = _found_frames(header)
    return found


def _found_frames(header: Dataset) -> list[list[Fragment]]:
    count = max(1, whole_number(header, "NumberOfFrames", 1))
    table = header.get("ExtendedOffsetTable")
    length = len(table) // 8 if isinstance(table, bytes) else 0
    frames = frames_of(header.PixelData, count, struct.unpack_from(f"<{length}Q", table or b""))
    if not frames and not header.file_meta.TransferSyntaxUID.is_transfer_syntax:
        raise _without_decoder(header.file_meta.TransferSyntaxUID)
    if not frames:
        raise Rejected("broken_pixels", "the compressed pixel data hold no frame whose beginning can be found")
    return frames


def compressed_frame(header: Dataset, frame: int) -> bytes:
    """The compressed stream of one frame, joined from its fragments. Raises Rejected: broken_pixels."""
    return joined(header.PixelData, _frames(header)[frame])


def _frame_alone(header: Dataset, frame: int) -> Dataset:
    """A header that describes the stream of one frame alone.

    Fragments of two transfer syntaxes hold uncompressed pixels, which may be deflated. All other streams state some
    attributes themselves; the stream is right where a header contradicts it.

    Raises:
        Rejected: broken_pixels.
    """
    stream, syntax = compressed_frame(header, frame), header.file_meta.TransferSyntaxUID
    alone = Dataset()
    for name in (*DESCRIPTION, *PADDING["PixelData"]):
        if name in header:  # an element of its own, since changes must not reach the header
            alone.add_new(name, header[name].VR, header[name].value)
    alone.file_meta = FileMetaDataset()
    if syntax in (DEFLATED_FRAMES, ENCAPSULATED_UNCOMPRESSED):
        alone.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        content = _inflated(stream, frame_bits(header) // 8 + 2) if syntax == DEFLATED_FRAMES else stream
        alone.add_new("PixelData", "OB" if whole_number(header, "BitsAllocated") <= 8 else "OW", content)
        return alone
    syntax, found = syntax_of(stream, syntax), stream_header(stream)
    if syntax in (PROGRESSION, SPECTRAL_SELECTION):  # decoders tell progressive streams by themselves
        syntax = JPEGExtended12Bit if found and found.bits > 8 else JPEGBaseline8Bit
    alone.file_meta.TransferSyntaxUID = syntax
    if found:
        _adopt(alone, found)
        if stream[:2] == SOI and found.is_ycbcr is not None:
            stream = without_colour_marks(stream)
    alone.add_new("PixelData", "OB", encapsulate([stream], has_bot=False))
    alone["PixelData"].is_undefined_length = True
    return alone


def _adopt(alone: Dataset, found: StreamHeader) -> None:
    """Take bits and colour space from a stream. Raises Rejected where its size is not that of the header."""
    expected = tuple(whole_number(alone, name, 1) for name in ("Rows", "Columns", "SamplesPerPixel"))
    if (found.rows, found.columns, found.samples) != expected:
        raise Rejected("broken_pixels", "the compressed image differs in size from the header")
    container = 8 if found.bits <= 8 else 16
    if found.bits <= 16 and whole_number(alone, "BitsAllocated") != container:
        alone.BitsAllocated, alone.BitsStored, alone.HighBit = container, found.bits, found.bits - 1
        alone.PixelRepresentation = int(found.is_signed)
    photometric = code_of(alone, "PhotometricInterpretation")
    if found.is_ycbcr is False and photometric.startswith("YBR_"):
        alone.PhotometricInterpretation = "RGB"
    elif found.is_ycbcr and photometric == "RGB":
        alone.PhotometricInterpretation = "YBR_FULL"


def _inflated(stream: bytes, most: int) -> bytes:
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream, most)
    except zlib.error as error:
        raise Rejected("broken_pixels", "the frame cannot be inflated") from error


def frame_bits(header: Dataset) -> int:
    """Bits of one uncompressed frame."""
    samples = (
        whole_number(header, "Rows") * whole_number(header, "Columns") * whole_number(header, "SamplesPerPixel", 1)
    )
    if header.get("PhotometricInterpretation") in ("YBR_FULL_422", "YBR_PARTIAL_422"):
        samples = samples * 2 // 3
    return samples * whole_number(header, "BitsAllocated", 8)


def is_encapsulated(header: Dataset) -> bool:
    """Whether the pixel data are in fragments. An unknown transfer syntax is assumed to use fragments."""
    try:
        return bool(header.file_meta.TransferSyntaxUID.is_encapsulated)
    except ValueError:
        return True


def _clean(header: Dataset, stored: np.ndarray) -> np.ndarray:
    """Shift stored values down where High Bit is unusual, and drop bits above Bits Stored (PS3.5 8.1.1).

    Padding keeps these bits, since its value may need them: without them, it could not be told from the other pixels.
    Most frames need neither. Their values are returned without a copy.
    """
    allocated = 8 * stored.dtype.itemsize
    bits = min(whole_number(header, "BitsStored", allocated), allocated)
    if stored.dtype.kind not in "iu" or stored.ndim != 2 or bits == allocated or not stored.size:
        return stored
    syntax = header.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated or syntax == RLELossless:
        unused = whole_number(header, "HighBit", bits - 1) + 1 - bits
        if 0 < unused <= allocated - bits:
            stored = stored >> unused
    signed = stored.dtype.kind == "i"
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if low <= stored.min() and stored.max() <= high:
        return stored
    spare = allocated - bits
    values = (stored << spare) >> spare  # for signed values, the right shift extends the sign
    padding = padding_limits(header, stored.dtype)
    if padding is None:
        return values
    return np.where((stored >= padding[0]) & (stored <= padding[1]), stored, values)


# ------------------------------------------------------------------------------------------------- reduced decoding


def reductions(header: Dataset, frame: int, size: int, tolerance: float) -> Iterator[Reduced]:
    """A grey frame at lower resolutions that suffice for a sample of `size` × `size` pixels, the lowest first.

    JPEG 2000 yields at most two. Their values differ from those of the full frame by at most `tolerance` on average.
    Nothing is yielded where the codec cannot reduce, where the image is small, or where the stream differs from the
    header.

    Args:
        header: The file's header.
        frame: Number from 0.
        size: Side of the sample in pixels.
        tolerance: Mean difference allowed, in stored values.
    """
    ratio = max(whole_number(header, "Rows"), whole_number(header, "Columns")) / size
    if ratio < 2 or whole_number(header, "SamplesPerPixel", 1) != 1:
        return
    if not is_encapsulated(header):
        return
    alone, stream = _frame_alone(header, frame), compressed_frame(header, frame)
    syntax = alone.file_meta.TransferSyntaxUID
    if syntax not in JPEG2000TransferSyntaxes and syntax not in (JPEGBaseline8Bit, JPEGExtended12Bit):
        return
    try:
        if syntax in JPEG2000TransferSyntaxes:
            lowest = min(int(np.log2(ratio / CELLS_OF_JPEG_2000)), int(tolerance / ROUNDING))
            for level in range(lowest, max(0, lowest - 2), -1):
                yield _reduced_jpeg_2000(alone, stream, level)
        else:
            yield _reduced_jpeg(alone, stream, jpeg_scale(ratio))
    except (KeyboardInterrupt, SystemExit, MemoryError, GeneratorExit):
        raise
    except BaseException:  # decoding the full frame will raise and report any real problem
        return


def _reduced_jpeg_2000(header: Dataset, stream: bytes, level: int) -> Reduced:
    """The low-pass band of a wavelet level. Its filter has odd length, so cell k is centred on pixel k · 2**level."""
    found = stream_header(stream)
    bits, signed = whole_number(header, "BitsStored"), bool(whole_number(header, "PixelRepresentation"))
    if found is None or not found.is_plain or (found.bits, found.is_signed) != (bits, signed) or bits > 16:
        raise ValueError("the stream differs from the header")
    scale = 2**level
    with Image.open(io.BytesIO(stream), formats=["JPEG2000"]) as image:
        size = (-(-found.columns // scale), -(-found.rows // scale))
        tile = image.tile[0]
        arguments = cast("tuple[Any, ...]", tile.args)
        # Pillow's own `reduce` rounds half sizes differently from the codec, which rounds up, and then cannot decode.
        image._size = size
        image.tile = [tile._replace(extents=(0, 0, *size), args=(arguments[0], level, *arguments[2:]))]
        image.load()
        stored = np.asarray(image)
    container = 8 if bits <= 8 else 16
    stored = np.right_shift(stored, container - bits)  # Pillow fills the container's high bits
    if signed:  # Pillow adds half the range to signed values
        stored = stored.astype(np.int32) - 2 ** (bits - 1)
    return Reduced(stored, scale, 0.5 - 0.5 / scale, aliases_below=ALIASES_BELOW)


def _reduced_jpeg(header: Dataset, stream: bytes, scale: int) -> Reduced:
    """A JPEG frame whose blocks of 8 × 8 pixels are decoded to 4 × 4, 2 × 2 or 1 × 1 by a smaller inverse DCT."""
    if scale == 1 or whole_number(header, "BitsStored") != 8 or whole_number(header, "PixelRepresentation"):
        raise ValueError("there is nothing to reduce, or the pixels are not unsigned 8-bit values")
    with Image.open(io.BytesIO(stream), formats=["JPEG"]) as image:
        if image.mode != "L":
            raise ValueError("not grey")
        image.draft("L", (image.width // scale, image.height // scale))
        return Reduced(np.asarray(image), scale)


def jpeg_scale(ratio: float) -> int:
    """The largest DCT scale that suffices for a JPEG image whose longer side is `ratio` times the sample's side."""
    return next((scale for scale, cells in CELLS_OF_JPEG.items() if ratio / scale >= cells), 1)


# --------------------------------------------------------------------------------------------- decoders for pydicom

DECODER_DEPENDENCIES = dict.fromkeys(
    (JPEGExtended12Bit, HTJ2KDecoder.UID, HTJ2KLosslessDecoder.UID, HTJ2KLosslessRPCLDecoder.UID),
    ("pillow>=11.1", "python-gdcm>=3.0.24"),
)


def is_available(syntax: str) -> bool:
    """Whether this module can decode a transfer syntax. pydicom requires this function of every decoder module."""
    return syntax in DECODER_DEPENDENCIES


def decode_12_bit(stream: bytes, runner: DecodeRunner) -> bytes:
    """Decode JPEG Extended of 12 bits by GDCM, which pydicom does not use here. The values equal those of DCMTK."""
    import gdcm

    if runner.bits_stored == 8:
        raise NotImplementedError
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((runner.columns, runner.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(runner.photometric_interpretation)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(runner.transfer_syntax))))
    bits = runner.bits_stored
    image.SetPixelFormat(
        gdcm.PixelFormat(runner.samples_per_pixel, runner.bits_allocated, bits, bits - 1, runner.pixel_representation)
    )
    content: bytes = image.GetBuffer().encode("utf-8", "surrogateescape")
    return content


def decode_htj2k(stream: bytes, runner: DecodeRunner) -> bytes:
    """Decode HTJ2K by Pillow, since its OpenJPEG library supports this format."""
    return bytes(pillow._decode_frame(stream, runner))


def _add_decoders() -> None:
    JPEGExtended12BitDecoder.add_plugin("gdcm_12_bit", (__name__, decode_12_bit.__name__))
    for decoder in (HTJ2KDecoder, HTJ2KLosslessDecoder, HTJ2KLosslessRPCLDecoder):
        decoder.add_plugin("pillow_htj2k", (__name__, decode_htj2k.__name__))


_add_decoders()
