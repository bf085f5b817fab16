"""Every exception that a user can meet.

Each message says what was given, which rule it breaks and what to do. All of them survive
pickling, because they cross process boundaries.
"""

_LONGEST_LINE = 2000
# What computing with data raises that are not shaped as they should be; others may have written it.
ILL_SHAPED = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


def one_line(text: object) -> str:
    """Write a message as one line that a terminal takes for nothing but text.

    Names and file contents that others chose may hold newlines and control sequences, or be of any
    length; the end stays, for it says what to do.
    """
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in str(text)
    )
    if len(shown) <= _LONGEST_LINE:
        return shown
    half = _LONGEST_LINE // 2
    return f"{shown[:half]} ... {shown[-half:]}"


class AcademicPretrainingError(Exception):
    """Base of all errors that are the user's to mend; a script answers with exit status 2."""


class UnknownNameError(AcademicPretrainingError):
    """A GPU type, model or method that no table holds."""


class InvalidConfigError(AcademicPretrainingError):
    """A configuration that breaks at least one validity rule.

    Attributes:
        reasons: one sentence per broken rule.
    """

    def __init__(self, *reasons: str) -> None:
        super().__init__(*reasons)
        self.reasons = reasons

    def __str__(self) -> str:
        return "; ".join(self.reasons)


class HardwareMismatchError(AcademicPretrainingError):
    """The declared hardware is not what the machine has."""


class DeviceBusyError(AcademicPretrainingError):
    """Somebody else computes on a GPU that was to be measured."""


class NoResultsError(AcademicPretrainingError):
    """A question about results that nobody has measured yet."""


class InvalidFileError(AcademicPretrainingError):
    """A file that the user named and that cannot be read as what it should be."""


class TrainingError(AcademicPretrainingError):
    """A training that the system would not let begin or end: a node out of reach, a full disk."""


class MeasurementError(AcademicPretrainingError):
    """A probe failed for a reason other than memory (crash, hang, exception in a worker).

    Never cached as a result; the message names the original cause and the log of its rank.
    """


class NotCompiledError(MeasurementError):
    """Compilation that was asked for took no hold of the model, and said nothing."""
