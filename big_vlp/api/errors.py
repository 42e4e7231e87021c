"""What a user of a model can mend: what was asked of it, and the images and texts it was given."""

import contextlib
from collections.abc import Iterator

from input_pipeline.checks.errors import BigVlpError


class ModelError(BigVlpError, ValueError):
    """A model cannot do this, or not with this image, text or option; the message says why."""


@contextlib.contextmanager
def explained(name: object) -> Iterator[None]:
    """Raises what is wrong with a file, an image or an option as ModelError: "NAME: reason"."""
    try:
        yield
    except BigVlpError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{name}: {reason}") from error
