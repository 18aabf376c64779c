"""Texts that a user typed for a model: they are refused if the model knows none of their words.

Messages name words, so these functions are for queries, prompts and options alone, never for reports.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cyclic_cli.errors import UsageError
from cyclic_cli.events import Note, Report

if TYPE_CHECKING:
    from cyclic_cli.inference.load import Model


def checked_words(model: "Model", text: str, what: str, report: Report) -> list[str]:
    """The words of a text that the model does not know; a warning names them. Arguments and errors: `unknown_words`."""
    unknown = unknown_words(model, text, what)
    warn_of(unknown, what, report)
    return unknown


def unknown_words(model: "Model", text: str, what: str) -> list[str]:
    """The different words of a text that the model does not know, in order.

    Args:
        model: A model with a text encoder.
        text: The text.
        what: What the text is, such as "the query", for the error message.

    Raises:
        UsageError: the model knows none of the words, or there are none.
        CyclicError: the model has no text encoder.
    """
    from cyclic_cli.text_encoders._known_words import listed, words_of

    unknown = model.unknown_words(text)
    if len(unknown) < len(words_of(text)):
        return unknown
    happened = f"The model knows no word of {what}: {listed(unknown)}." if unknown else f"There is no word in {what}."
    raise UsageError(happened, "Use words that are common in the training reports.")


def is_unread(model: "Model", text: str) -> bool:
    """Whether the model knows no word of a text."""
    from cyclic_cli.text_encoders._known_words import words_of

    return len(model.unknown_words(text)) == len(words_of(text))


def warn_of(unknown: Sequence[str], what: str, report: Report) -> None:
    """Report a warning that names unknown words of a text, if there are any."""
    from cyclic_cli.text_encoders._known_words import listed

    if unknown:
        report(Note(f"the model does not know these words of {what}: {listed(unknown)}", warning=True))
