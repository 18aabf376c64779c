"""Finds the compressed stream of every frame in encapsulated pixel data, and what a stream says about itself.

Offset tables are often wrong, and so is Number of Frames. The streams are not: each begins with a mark of its own,
which tells where a frame begins. Tables are used where they agree with these marks, or where there are none.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from cyclic_cli.errors import Rejected

SPECTRAL_SELECTION = UID("1.2.840.10008.1.2.4.53")  # both are progressive, and retired from the standard
PROGRESSION = UID("1.2.840.10008.1.2.4.55")
PROCESSES: dict[int, tuple[UID, ...]] = {
    0xC0: (JPEGBaseline8Bit, JPEGExtended12Bit),
    0xC1: (JPEGExtended12Bit,),
    0xC2: (PROGRESSION, SPECTRAL_SELECTION),
    0xC3: (JPEGLossless, JPEGLosslessSV1),
    0xF7: (JPEGLSNearLossless, JPEGLSLossless),
}
"""Transfer syntaxes of a stream by the marker of its frame header (ITU-T T.81 table B.1, T.87 C.1.1)."""

ITEM, DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
SOI, SOC = b"\xff\xd8", b"\xff\x4f"  # begin JPEG and JPEG-LS streams, and JPEG 2000 streams
END = b"\xff\xd9"  # ends them all
CAPABILITIES = b"\xff\x50"  # the segment behind SIZ, present in HTJ2K alone (ITU-T T.814)
LONGEST_SIZ = 128  # bytes that hold the SIZ segment of at most four components, and the marker behind it
LOSSY = (0xC0, 0xC1, 0xC2)  # markers of frame headers of DCT processes
JP2 = b"\x00\x00\x00\x0cjP  "  # begins a JPEG 2000 file
RLE = (64).to_bytes(4, "little")  # offset of the first segment, behind the number of segments (PS3.5 G.5)
LONGEST_PADDING = 64  # bytes that may follow the end of a stream
WHOLE_ENOUGH = 0.98  # minimum share of a stream: the image has little that is made up for what is missing


@dataclass(frozen=True)
class Fragment:
    """The bytes from `begin` to `end` of encapsulated pixel data, and how many the item of this fragment states."""

    begin: int
    end: int
    stated: int


@dataclass(frozen=True)
class StreamHeader:
    """What a compressed stream states.

    `is_ycbcr` says whether decoders find luminance and two colour differences; None where the stream leaves it open.
    `is_plain` is False where a JPEG 2000 image or its tiles do not begin at 0. `process` is the marker of the frame
    header of JPEG and JPEG-LS, and `sampling` are the factors of the first component, across and down.
    """

    rows: int
    columns: int
    samples: int
    bits: int
    is_signed: bool = False
    is_ycbcr: bool | None = None
    is_plain: bool = True
    process: int = 0
    sampling: tuple[int, int] = (1, 1)


def fragments_of(data: bytes, at: int = 0) -> list[Fragment]:
    """All items from offset `at` on (PS3.5 A.4). The last one may end before its stated length."""
    found = []
    while data[at : at + 4] == ITEM and at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        found.append(Fragment(at + 8, min(at + 8 + length, len(data)), length))
        at += 8 + length
    return found


def frames_of(data: bytes, count: int, extended: Sequence[int] = ()) -> list[list[Fragment]]:
    """The fragments of each frame, in order.

    Args:
        data: Encapsulated pixel data.
        count: The declared number of frames.
        extended: Extended Offset Table (PS3.3 C.7.6.3.1.8): offsets from the item of the first fragment.

    Returns:
        A list per frame. Their number differs from `count` where the streams prove another one, or where there are
        fewer fragments. A last frame of which much is missing is left out, unless it is the only one.
    """
    fragments, table = fragments_of(data), extended
    if fragments and not _begins_stream(data, fragments[0]):
        first = fragments.pop(0)
        content = data[first.begin : first.end]
        table = table or struct.unpack_from(f"<{len(content) // 4}I", content)
    frames = _grouped(data, [fragment for fragment in fragments if fragment.stated], count, table)
    return frames[:-1] if len(frames) > 1 and not _is_nearly_whole(frames[-1]) else frames


def _is_nearly_whole(frame: list[Fragment]) -> bool:
    there, stated = (sum(one.end - one.begin for one in frame), sum(one.stated for one in frame))
    return there >= WHOLE_ENOUGH * stated


def _grouped(data: bytes, fragments: list[Fragment], count: int, table: Sequence[int]) -> list[list[Fragment]]:
    """The fragments by frame; none where neither marks nor a table tell where frames begin."""
    if len(fragments) <= 1 or len(fragments) == count:
        return [[fragment] for fragment in fragments]
    places = {fragment.begin - fragments[0].begin: place for place, fragment in enumerate(fragments)}
    marked = [place for place, fragment in enumerate(fragments) if _begins_stream(data, fragment)]
    stated = [places.get(offset, -1) for offset in table]
    is_valid = len(stated) == count and stated[0] == 0 and stated == sorted(set(stated))
    if is_valid and (set(stated) <= set(marked) or not marked):
        begins = stated
    elif marked and marked[0] == 0:
        begins = marked
    elif len(fragments) <= count:
        begins = list(range(len(fragments)))
    else:
        begins = [0] if count == 1 else []
    return [fragments[begin:end] for begin, end in zip(begins, [*begins[1:], len(fragments)], strict=False)]


def is_cut(frame: list[Fragment]) -> bool:
    """Whether the file ends within the frame's last fragment, and more is missing than a pad byte."""
    return frame[-1].end - frame[-1].begin < frame[-1].stated - 1


def joined(data: bytes, frame: list[Fragment]) -> bytes:
    """The stream of a frame, with the end marker that decoders need and that some writers forget.

    Raises:
        Rejected: broken_pixels, where more than a fiftieth of the stream is missing.
    """
    stream = b"".join(data[fragment.begin : fragment.end] for fragment in frame)
    if not _is_nearly_whole(frame):
        raise Rejected("broken_pixels", "the compressed pixel data are cut short")
    lacks_end = stream[:2] in (SOI, SOC) and END not in stream[-LONGEST_PADDING:]
    return stream + END if lacks_end else stream


def _begins_stream(data: bytes, fragment: Fragment) -> bool:
    return is_stream(data[fragment.begin : min(fragment.end, fragment.begin + 8)])


def is_stream(head: bytes) -> bool:
    """Whether 8 bytes are the beginning of a JPEG, JPEG-LS, JPEG 2000 or RLE stream."""
    is_rle = 1 <= int.from_bytes(head[:4], "little") <= 15 and head[4:8] == RLE
    return head[:3] == SOI + b"\xff" or head[:4] == SOC + b"\xff\x51" or head[:8] == JP2 or is_rle


def syntax_of(stream: bytes, stated: UID) -> UID:
    """The transfer syntax of a stream: the stated one, unless the stream's marks contradict it."""
    known: tuple[UID | str, ...] = (stated,)
    if stream[:2] == SOC or stream[:8] == JP2:
        known = (HTJ2K if CAPABILITIES in stream[:LONGEST_SIZ] else JPEG2000, *JPEG2000TransferSyntaxes)
    elif stream[:2] == SOI:
        frame = next((marker for marker, _ in _segments(stream) if _is_frame(marker)), 0)
        known = PROCESSES.get(frame, known)
    elif is_stream(stream[:8]):
        known = (RLELossless,)
    return stated if stated in known else UID(known[0])


def stream_header(stream: bytes) -> StreamHeader | None:
    """The header of a JPEG, JPEG-LS or JPEG 2000 stream; None where it cannot be parsed."""
    with suppress(struct.error, IndexError, ValueError):
        if stream[:8] == JP2:
            return _jpeg_2000_header(stream[stream.index(SOC + b"\xff\x51") :])
        if stream[:2] == SOC:
            return _jpeg_2000_header(stream)
        if stream[:2] == SOI:
            return _jpeg_header(stream)
    return None


def _jpeg_2000_header(stream: bytes) -> StreamHeader | None:
    """From the SIZ and COD segments of a codestream (ITU-T T.800 A.5.1 and A.6.1).

    A stream with a colour transform of its own is RGB once decoded. One without it may be anything.
    """
    if stream[2:4] != b"\xff\x51":
        return None
    right, bottom, left, top = struct.unpack_from(">4I", stream, 8)
    tile_left, tile_top, samples, depth = struct.unpack_from(">2IHB", stream, 32)
    styles = [content for marker, content in _segments(stream) if marker == 0x52]
    is_rgb = bool(samples == 3 and styles and styles[0][4])
    return StreamHeader(
        bottom - top,
        right - left,
        samples,
        (depth & 0x7F) + 1,
        bool(depth & 0x80),
        False if is_rgb else None,
        not any((left, top, tile_left, tile_top)),
    )


def _jpeg_header(stream: bytes) -> StreamHeader | None:
    """From the segments before the first scan (ITU-T T.81 B.2.2, T.87 C.2.2)."""
    is_jfif, adobe = False, None
    for marker, content in _segments(stream):
        if marker == 0xE0 and content[:5] == b"JFIF\0":
            is_jfif = True
        elif marker == 0xEE and content[:5] == b"Adobe":
            adobe = bool(content[11])
        elif _is_frame(marker):
            bits, rows, columns, samples = struct.unpack_from(">BHHB", content)
            components = [content[6 + 3 * place : 8 + 3 * place] for place in range(samples)]
            is_ycbcr = _is_ycbcr(components, is_jfif, adobe) if samples == 3 and marker in LOSSY else None
            sampling = (content[7] >> 4, content[7] & 15)
            return StreamHeader(rows, columns, samples, bits, is_ycbcr=is_ycbcr, process=marker, sampling=sampling)
    return None


def _is_ycbcr(components: list[bytes], is_jfif: bool, adobe: bool | None) -> bool | None:
    """Whether three components, each an identifier and its sampling factors, are YCbCr.

    The identifiers may say RGB. JFIF knows YCbCr alone, Adobe's marker tells, and nobody subsamples red, green or blue.
    """
    if bytes(component[0] for component in components) in (b"RGB", b"rgb"):
        return False
    is_subsampled = len({component[1] for component in components}) > 1
    return True if is_jfif else adobe if adobe is not None else is_subsampled or None


def without_colour_marks(stream: bytes) -> bytes:
    """A JPEG stream whose JFIF and Adobe segments are comments, so that decoders leave the components as they are."""
    for marker, content in _segments(stream):
        if marker in (0xE0, 0xEE):
            segment = struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
            stream = stream.replace(segment, b"\xff\xfe" + segment[2:], 1)
    return stream


def _is_frame(marker: int) -> bool:
    return marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC))


def _segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of every segment up to the first scan or tile."""
    at = 2
    while at + 4 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in (0xDA, 0x90):
            return
        (length,) = struct.unpack_from(">H", stream, at + 2)
        yield marker, stream[at + 4 : at + 2 + length]
        at += 2 + max(2, length)
