"""Which strings are paths of this machine."""

import argparse
import os
import re
from pathlib import Path

from input_pipeline.checks.errors import BigVlpError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# What pathlib leaves of a URL: "gs://bucket" becomes "gs:/bucket".
_MANGLED_URL = re.compile(
    r"(gs|gcs|s3a?|s3n|r2|az|abfss?|wasbs?|adl|hdfs|viewfs|hf|file|https?|ftp|sftp|ssh):/", re.I
)


class PathError(BigVlpError, ValueError):
    """A path that names nothing on this machine; the message says what to give."""


def local_path(given: str | os.PathLike) -> Path:
    """The absolute path of a local or mounted file or directory; "~" is the home directory.

    Any name that the file system allows is a path. A folder that really is called "~" or "gs:" is
    given as "./~" or "./gs:".

    Raises:
      PathError: it is a URL, or empty.
    """
    text = os.fspath(given)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if not text:
        raise PathError("The path is empty; give a directory, or '.' for the current one.")
    if _URL.match(text) or _MANGLED_URL.match(text):
        raise PathError(
            f"{text!r} is a URL, and this needs a local or mounted directory: mount the bucket "
            "(gcsfuse, s3fs) and give the mounted path."
        )
    return Path(os.path.expanduser(text)).absolute()


def path_argument(text: str) -> Path:
    """Reads a path on a command line, as argparse wants it; a relative one stays so."""
    try:
        local_path(text)
    except PathError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(os.path.expanduser(text))
