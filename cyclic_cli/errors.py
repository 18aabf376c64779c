"""Every error a user can meet, as one tree with one root.

    CyclicError            exit 1   what happened, and the way out
    ├── UsageError         exit 2   a wrong option, a misspelt name, a value that cannot be
    ├── Stopped            exit 130 or 143   ended by a signal, after its state was saved
    └── InputError                  one input that cannot be used; never ends a job of many
        ├── Rejected                broken or not understood: stands in `rejected.jsonl` with a reason
        └── Skipped                 in order, but no picture (a segmentation, a structured report ...)

Beside the tree stands Terminated, which is what SIGTERM raises where no state has to be saved (exit 143).

The command line catches the root once and prints one or two lines. Anything else is a bug and keeps its
traceback. A message names files, settings and expected values, never what a header or a report says.
"""

REASONS = {
    "missing": "there is no such file",
    "unreadable": "the file cannot be opened (permission or disk)",
    "empty": "the file has no bytes",
    "unknown_format": "neither DICOM nor PNG, JPEG or TIFF",
    "broken_header": "the header cannot be read",
    "no_pixels": "the file holds no pixel data",
    "broken_pixels": "the pixel data are damaged or cut short",
    "no_decoder": "no decoder for this transfer syntax is installed",
    "too_large": "the header declares more pixels than any image has",
    "burned_in": "the header says that text is burned into the picture; --allow-burned-in takes it all the same",
    "no_frame": "the file has fewer frames than the one asked for",
    "blank": "every pixel has the same value",
    "crashed": "the decoder crashed, or was killed for want of memory",
    "timeout": "reading it took longer than --time-limit",
    "broken_archive": "the zip archive that holds it is damaged",
    "unexpected": "reading it failed in a way this program does not know; please report that",
    "conflicting_rows": "rows of the tables contradict one another about this image",
    "text_without_image": "a text file that belongs to no image",
}
"""The closed list of reason codes of `rejected.jsonl`, with what each means."""


class CyclicError(Exception):
    """Something a user can do something about.

    Args:
        message: What happened, in one line, without anything from a header or a report.
        hint: The way out, in one line.
    """

    exit_code = 1
    everywhere = False  # raised in all processes of a run: one of them says so

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(CyclicError):
    """The command line or a settings file asks for something that does not exist or cannot be."""

    exit_code = 2


class Stopped(CyclicError):
    """A signal ended the work after its state was saved; `exit_code` is 130 (interrupt) or 143 (requeue me)."""

    def __init__(self, message: str, hint: str, exit_code: int) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message, self.hint, self.exit_code), self.__dict__


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. Like an interrupt it passes every `except Exception` on its way out."""


class InputError(CyclicError):
    """One input that gives no sample. `identities` is whom its header names, where it could be read that far."""

    identities: object = None


class Rejected(InputError):
    """An input that cannot be used.

    Args:
        reason: A key of `REASONS`.
        detail: What exactly, in words of our own: a decoder's message may quote the header.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or REASONS[reason])
        self.reason = reason


class Skipped(InputError):
    """A valid input that is not an image to learn from; `kind` says what it is, `text` is what a report says."""

    def __init__(self, kind: str, text: str = "") -> None:
        super().__init__(f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}, not an image")
        self.kind = kind
        self.text = text
