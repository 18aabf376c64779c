"""The errors that a user can meet; all are subclasses of CyclicError.

    CyclicError            exit 1   any failure that the user can do something about
    ├── UsageError         exit 2   a wrong option, a misspelt name, an impossible value
    ├── Stopped            exit 130 or 143   ended by a signal, after the state was saved
    └── InputError                  one input cannot be used; a job with many inputs goes on
        ├── Rejected                broken or not supported: listed in `rejected.jsonl` with a reason
        └── Skipped                 valid, but not an image (a segmentation, a structured report ...)

Terminated is not a CyclicError: SIGTERM raises it where no state has to be saved (exit 143).

The command line catches CyclicError in one place and prints one or two lines. Any other exception is a bug and keeps
its traceback. A message names files, settings and expected values. It never quotes a header or a report.
"""

REASONS = {
    "missing": "there is no such file",
    "unreadable": "the file cannot be opened (permission or disk)",
    "empty": "the file has no bytes",
    "unknown_format": "neither DICOM nor PNG, JPEG, TIFF or NIfTI",
    "broken_header": "the header cannot be read",
    "no_pixels": "the file holds no pixel data",
    "broken_pixels": "the pixel data are damaged or cut short",
    "no_decoder": "no decoder for this transfer syntax is installed",
    "too_large": "the header declares more pixels than any image has",
    "burned_in": "the header says that text is burned into the image; --allow-burned-in accepts such images",
    "no_frame": "the file has fewer frames than --frames asks for",
    "blank": "every pixel has the same value",
    "crashed": "the decoder crashed, or was killed because memory ran out",
    "timeout": "reading it took longer than --time-limit",
    "broken_archive": "the zip archive that holds it is damaged",
    "unexpected": "reading it failed for an unknown reason; please report this",
    "conflicting_rows": "rows of the tables contradict one another about this image",
    "text_without_image": "a text file that does not belong to any image",
    "unreadable_text": "the text is damaged or in an unknown encoding, so names in it could not be found",
    "unjudged_text": "with --strict-text: names in the text could not be told from other words",
}
"""All reason codes that `rejected.jsonl` may contain, each with its meaning."""


class CyclicError(Exception):
    """A failure that the user can do something about.

    Args:
        message: What happened, in one line, without anything from a header or a report.
        hint: What the user can do about it, in one line.
    """

    exit_code = 1
    everywhere = False  # raised in all processes of a run; only the main process prints it

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(CyclicError):
    """The command line or a settings file asks for something that does not exist or is impossible."""

    exit_code = 2


class Stopped(CyclicError):
    """A signal ended the work after its state was saved; `exit_code` is 130 (interrupt) or 143 (requeue the job)."""

    def __init__(self, message: str, hint: str, exit_code: int) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message, self.hint, self.exit_code), self.__dict__


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. It derives from KeyboardInterrupt so that no `except Exception` catches it."""


class InputError(CyclicError):
    """One input that gives no sample.

    `identities` holds the patient and study identities of its header if the header could be read, else None.
    """

    identities: object = None


class Rejected(InputError):
    """An input that cannot be used.

    Args:
        reason: A key of `REASONS`.
        detail: What exactly failed, in words of this program: the message of a decoder may quote the header.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or REASONS[reason])
        self.reason = reason


class Skipped(InputError):
    """A valid input that is not an image to learn from.

    Args:
        kind: What the input is, such as "segmentation".
        text: The text of a structured report.
    """

    def __init__(self, kind: str, text: str = "") -> None:
        super().__init__(f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}, not an image")
        self.kind = kind
        self.text = text
