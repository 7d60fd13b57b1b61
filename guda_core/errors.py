"""The exception tree. Messages are shown to users as they are: they say what happened, why, and what mends it."""

from collections.abc import Iterator

LONGEST = 1000  # characters of a message


def one_line(text: str) -> str:
    """The text on one line of at most `LONGEST` characters: names of others, and what a library says, may be long."""
    line = " ".join(part.strip() for part in text.splitlines() if part.strip())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 405]} ... {line[-400:]}"


def first_line(error: BaseException) -> str:
    """An error's first line, without the full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised because of: libraries hide that behind an error of their own."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def why(error: Exception) -> str:
    """What went wrong, on one line: an unforeseen error tells its class, too."""
    return str(error) if isinstance(error, GudaError) else one_line(f"{type(error).__name__}: {error}")


class GudaError(Exception):
    """Base of every error this project raises on purpose. Its message is one line (`one_line`)."""

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


def kind_of(name: str) -> type[GudaError]:
    """The class of that name; GudaError where there is none."""
    found = globals().get(name)
    return found if isinstance(found, type) and issubclass(found, GudaError) else GudaError


class ImageError(GudaError):
    """A picture was refused: not a picture, damaged, too large, too small, or of a type that is not accepted."""


class UnreadError(ImageError):
    """A picture's file is not there, or cannot be opened now: nothing is known of what it shows."""


class PromptError(GudaError):
    """A prompt was refused: too long, or with characters that cannot be part of a caption."""


class OptionError(GudaError):
    """An option is out of its range or names something that does not exist."""


class GroupSetError(GudaError):
    """A `group_set.yaml` is missing, malformed or contradicts itself."""


class DataError(GudaError):
    """Training pictures are missing or cannot be fetched or rendered."""


class ModelError(GudaError):
    """A base model is missing, damaged or of a kind that cannot be scored."""


class AdapterError(GudaError):
    """An unlearning adapter is missing, damaged or was made for another base model."""


class ScoreError(GudaError):
    """A score cannot be computed (for example: a value is not finite)."""


class ReportError(GudaError):
    """A report is damaged, was tampered with, or cannot be written, read or replayed."""


class PassingError(ReportError):
    """A file cannot be read or written now. A little later, or on another machine, it may."""


class TrainingError(GudaError):
    """A training cannot start, go on or be resumed."""


LACKS = "There is not enough memory, even for one piece at a time."


def lacked(reason: str) -> bool:
    """Whether a reason why there is no score is a lack of memory, which may pass."""
    return LACKS in reason


class NoMemoryError(ScoreError, TrainingError):
    """There is not enough memory. Another time, or on another machine, there may be."""


class NoRoomError(NoMemoryError, ModelError):
    """A model does not fit into memory."""


class InHandError(TrainingError):
    """Another process has the same work in hand. lock: the file that it has locked; "": that is not told."""

    def __init__(self, message: str = "", lock: str = "") -> None:
        super().__init__(message)
        self.lock = lock


class CacheError(GudaError):
    """Stored intermediate results are damaged or do not fit their settings."""
