"""Which strings are paths of this machine."""

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
    """A path that names nothing that can be used; the message says what to give."""


def is_url(text: str) -> bool:
    return _URL.match(text) is not None


def local_path(given: str | os.PathLike) -> Path:
    """The absolute path of a local or mounted file or directory; "~" is the home directory.

    Any name that the file system allows is a path. A folder that really is called "~" or "gs:" is
    given as "./~" or "./gs:". What may lie in a bucket is for `files.buckets.storage_path`.

    Raises:
      PathError: it is a URL, or empty.
    """
    text = os.fspath(given)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if not text:
        raise PathError("The path is empty; give a directory, or '.' for the current one.")
    if is_url(text) or _MANGLED_URL.match(text):
        raise PathError(
            f"{text!r} is a URL that cannot be used as it is: mount the bucket (gcsfuse, s3fs) and "
            "give the mounted path, or give a string that begins with gs:// or s3://."
        )
    return Path(os.path.expanduser(text)).absolute()
