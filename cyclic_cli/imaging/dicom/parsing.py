"""Parses a DICOM file into its header and pixel data, whatever encoding its file meta information claims.

Writers state a wrong transfer syntax, an empty one or none. What the bytes are is seen in the dataset itself, so the
header that leaves this module states the transfer syntax that its pixel data have.
"""

import io
import struct
import zlib

import pydicom
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from cyclic_cli.errors import Rejected
from cyclic_cli.imaging.dicom.decoding import DEFLATED_FRAMES, ENCAPSULATED_UNCOMPRESSED, frame_bits, is_encapsulated
from cyclic_cli.imaging.dicom.header import code_of, elements_behind, whole_number
from cyclic_cli.imaging.dicom.streams import DELIMITER, ITEM, RLE, fragments_of, is_stream, syntax_of

PIXEL_TAGS = {(0x7FE0, 0x0010), (0x7FE0, 0x0008), (0x7FE0, 0x0009)}
PIXEL_VRS = {b"OB", b"OW", b"OF", b"OD", b"UN"}
UNDEFINED = 0xFFFFFFFF
FIRST_GROUPS = (b"\x08\x00", b"\x00\x08", b"\x02\x00")  # with which a dataset begins, in either byte order
LARGEST_DATASET = 2**31  # bytes after inflation
PREAMBLE = 132  # bytes before the file meta information, with the mark that ends them


def parse(content: bytes) -> tuple[Dataset, Dataset | None]:
    """The header of a file, with the pixel data as a view of the content, and the elements behind the pixel data.

    Raises:
        Rejected: broken_header, or no_pixels where the file ends before its pixel data.
    """
    start = _dataset_offset(content)
    if content[start + PREAMBLE - 4 : start + PREAMBLE] == b"DICM":  # the whole beginning of the file is there twice
        return parse(content[start:])
    if start >= PREAMBLE and content[start : start + 2] not in FIRST_GROUPS and (plain := _inflated(content[start:])):
        return parse(plain)  # deflated, whatever is stated
    stream = io.BytesIO(content)
    behind = None
    try:
        header: Dataset = pydicom.dcmread(stream, force=True, stop_before_pixels=True)
        if header.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            header = pydicom.dcmread(io.BytesIO(content), force=True)
            little = True
        else:
            little = _is_little_endian(content, start, bool(header.original_encoding[1]))
            if little != header.original_encoding[1]:
                stream.seek(start)
                file_meta = header.file_meta
                header = read_dataset(stream, False, little, stop_when=_is_pixel_data)
                header.file_meta = file_meta
            if end := _attach_pixels(header, content, stream.tell(), little):
                stream.seek(end)
                behind = elements_behind(stream, header) if end < len(content) else None
            else:
                file_meta = header.file_meta
                stream.seek(start)
                header = read_dataset(stream, bool(header.original_encoding[0]), little)
                header.file_meta = file_meta
    except Rejected:
        raise
    except zlib.error as error:
        if content[start : start + 2] in FIRST_GROUPS:  # said to be deflated
            return parse(content[start:])
        raise Rejected("broken_header", "the deflated dataset is damaged or cut short") from error
    except (EOFError, struct.error) as error:
        raise Rejected("broken_header", "the file ends within an element") from error
    except Exception as error:  # a damaged file makes the parser raise almost anything
        raise Rejected("broken_header", "the file is not DICOM, or an element of it is damaged") from error
    _complete(header)
    _correct_syntax(header, little)
    return header, behind


def ends_in_header(header: Dataset) -> bool:
    """Whether the file ends before the value of the last element does, or before any element."""
    last = header.get_item(max(header.keys())) if header else None
    if not isinstance(last, RawDataElement):
        return last is None
    return isinstance(last.value, bytes) and last.length != UNDEFINED and len(last.value) < last.length


def _inflated(content: bytes) -> bytes:
    """A dataset after inflation; empty where the bytes are not a deflated dataset."""
    try:
        plain = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, LARGEST_DATASET)
    except zlib.error:
        return b""
    return plain if plain[:2] in FIRST_GROUPS else b""


def _dataset_offset(content: bytes) -> int:
    """The offset behind the file meta information, whose elements are explicit VR little endian (PS3.10 7.1)."""
    at = PREAMBLE if content[PREAMBLE - 4 : PREAMBLE] == b"DICM" else 0
    while content[at : at + 2] == b"\x02\x00" and content[at + 4 : at + 6].isalpha():
        long = content[at + 4 : at + 6] in (b"OB", b"OW", b"UN", b"UT", b"SQ")
        begin = at + (12 if long else 8)
        at = begin + int.from_bytes(content[begin - (4 if long else 2) : begin], "little")
    return at


def _is_little_endian(content: bytes, start: int, otherwise: bool) -> bool:
    """Byte order of a dataset. It begins with a low group such as 0008 (PS3.5 7.1), read wrongly as 0800."""
    group, representation = content[start : start + 2], content[start + 4 : start + 6]
    if len(group) < 2 or (0 in group) == (group[0] == group[1]):
        return otherwise
    is_explicit = representation.isalpha() and representation.isupper()
    return group[1] == 0 or (otherwise and not is_explicit)  # big endian is always explicit


def _is_pixel_data(tag: BaseTag, _: str | None, __: int) -> bool:
    return (tag.group, tag.element) in PIXEL_TAGS


def _attach_pixels(header: Dataset, content: bytes, place: int, little: bool) -> int:
    """Add the pixel data element at offset `place` of the content to the header; its end, or 0 where there is none.

    The element itself tells whether its VR is explicit: implicit pixel data of 16,975 bytes or of another odd number
    that reads as `OB` do not exist.
    """
    order = "<" if little else ">"
    if place + 8 > len(content) or (tag := struct.unpack_from(order + "HH", content, place)) not in PIXEL_TAGS:
        return 0
    representation = content[place + 4 : place + 6]
    explicit = representation in PIXEL_VRS and content[place + 6 : place + 8] == b"\0\0"
    begin = place + (12 if explicit else 8)
    if begin > len(content) or (representation.isalpha() and representation.isupper() and not explicit):
        return 0
    (length,) = struct.unpack_from(order + "I", content, begin - 4)
    view: bytes | memoryview
    if length == UNDEFINED:
        fragments = fragments_of(content, begin)
        end = fragments[-1].begin + fragments[-1].stated if fragments else begin
        view = content[begin:end]
        end += 8 if content[end : end + 4] == DELIMITER else 0
    else:
        end = begin + length
        view = memoryview(content)[begin:end]
    vr = representation.decode() if explicit and representation != b"UN" else "OW"
    header[tag] = DataElement(tag, vr, view, already_converted=True)
    return end


def _complete(header: Dataset) -> None:
    """Add attributes that old files omit, and that decoders require. Each has one likely value."""
    if "Rows" not in header:
        return
    colour = header.get("SamplesPerPixel", 1) == 3
    usual: dict[str, object] = {"SamplesPerPixel": 1, "PixelRepresentation": 0, "PlanarConfiguration": 0}
    usual |= {"PhotometricInterpretation": "RGB" if colour else "MONOCHROME2"}
    usual |= {"BitsStored": header.get("BitsAllocated")}
    for name, value in usual.items():
        if header.get(name) is None:
            setattr(header, name, value)
    photometric = "PhotometricInterpretation"  # decoders know terms in upper case without padding alone
    setattr(header, photometric, code_of(header, photometric) or usual[photometric])


def _correct_syntax(header: Dataset, little: bool) -> None:
    """Let the header state the transfer syntax of its pixel data, where the bytes prove another one or none is stated.

    Fragments are compressed, and pixels of the right length without items are not.
    """
    stated = UID(str(header.file_meta.get("TransferSyntaxUID") or "").strip(" \0"))
    implicit = bool(header.original_encoding[0])
    plain = ExplicitVRBigEndian if not little else ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    header.file_meta.TransferSyntaxUID = stated or plain
    data = header.get("PixelData") if "Rows" in header else None
    if not isinstance(data, bytes | memoryview):
        return
    expected = frame_bits(header) * max(1, whole_number(header, "NumberOfFrames", 1)) // 8
    head = bytes(data[:8])
    is_fragmented, is_plain_length = head[:4] == ITEM, 0 <= len(data) - expected <= 1
    if is_fragmented and not (is_plain_length and stated and not is_encapsulated(header)):
        header.PixelData = bytes(data)
        if not stated or not is_encapsulated(header) or _holds_plain_pixels(header, header.PixelData):
            header.file_meta.TransferSyntaxUID = _syntax_of_fragments(header.PixelData)
    elif is_stream(head) and head[4:8] != RLE and not is_plain_length:  # a stream without fragments
        header.PixelData = encapsulate([bytes(data)], has_bot=False)
        known = stated if stated and is_encapsulated(header) else ENCAPSULATED_UNCOMPRESSED
        header.file_meta.TransferSyntaxUID = syntax_of(bytes(data), known)
    elif is_plain_length and header.file_meta.TransferSyntaxUID.is_transfer_syntax and is_encapsulated(header):
        header.file_meta.TransferSyntaxUID = plain
    elif not is_encapsulated(header) and stated != DeflatedExplicitVRLittleEndian:
        _state_byte_order(header, little, plain)


def _holds_plain_pixels(header: Dataset, data: bytes) -> bool:
    """Whether the first fragment behind an offset table is as long as an uncompressed frame, and no stream."""
    length, found = frame_bits(header) // 8, fragments_of(data[: 2**16])[:2]
    streams = any(is_stream(data[one.begin : one.begin + 8]) for one in found)
    is_deflated = header.file_meta.TransferSyntaxUID == DEFLATED_FRAMES
    return not streams and not is_deflated and any(0 <= one.stated - length <= 1 for one in found if one.stated > 1)


def _state_byte_order(header: Dataset, little: bool, plain: UID) -> None:
    if bool(header.file_meta.TransferSyntaxUID.is_little_endian) != little:
        header.file_meta.TransferSyntaxUID = plain


def _syntax_of_fragments(data: bytes) -> UID:
    """The transfer syntax of fragments: that of the first stream, else uncompressed pixels."""
    for fragment in fragments_of(data)[:2]:
        stream = data[fragment.begin : fragment.end]
        if is_stream(stream[:8]):
            return syntax_of(stream, ENCAPSULATED_UNCOMPRESSED)
    return ENCAPSULATED_UNCOMPRESSED
