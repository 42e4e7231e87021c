"""gs:// by gcsfs, for all libraries that go through fsspec."""

import contextlib
import logging
import re
from urllib.parse import unquote

from input_pipeline.files.outages import COMMITTED, Unreachable, tell, text_of


def connect() -> None:
    """Before the first use: the file system of these URLs becomes ours."""
    import aiohttp
    import fsspec
    import requests
    from fsspec.asyn import sync_wrapper

    # Not gcsfs.GCSFileSystem, which asks each bucket for its type over gRPC; proxies and emulators
    # do not answer that.
    from gcsfs.core import GCSFileSystem
    from gcsfs.retry import ChecksumError, HttpError
    from google.auth.exceptions import GoogleAuthError

    passing = (ChecksumError, TimeoutError, aiohttp.ClientError, requests.RequestException)

    class GoogleFiles(GCSFileSystem):
        async def _call(self, method, path, *args, **options):
            try:
                return await super()._call(method, path, *args, **options)
            except FileNotFoundError as error:
                found = re.search(r"b/([^/]+)/o(?:/([^/?]+))?", path)
                if found is None:
                    raise
                bucket, name = found.groups()
                if method == "POST" and "/upload/" in path:
                    raise FileNotFoundError(f"there is no bucket {bucket!r}") from error
                url = f"gs://{bucket}/{unquote(name or '')}"
                raise FileNotFoundError(f"{url} does not exist") from error
            except passing as error:
                raise Unreachable(text_of(error)) from error
            except HttpError as error:
                passes = str(error.code) in ("408", "429") or str(error.code)[:1] == "5"
                raise (Unreachable if passes else OSError)(text_of(error)) from error
            except (GoogleAuthError, ValueError) as error:
                raise OSError(text_of(error)) from error

        async def _rm(self, path, recursive=False, **options):
            if recursive and isinstance(path, str):
                with contextlib.suppress(FileNotFoundError):
                    await self._rm_file(f"{path}/{COMMITTED}")
            return await super()._rm(path, recursive=recursive, **options)

        rm = sync_wrapper(_rm)

    fsspec.register_implementation("gs", GoogleFiles, clobber=True)
    fsspec.register_implementation("gcs", GoogleFiles, clobber=True)
    # No list of files is remembered: others write there, too.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    log = logging.getLogger("gcsfs")
    log.setLevel(logging.DEBUG)
    log.propagate = False
    log.handlers = [_Retries()]


class _Retries(logging.Handler):
    """Tells of requests that gcsfs makes again."""

    def emit(self, record):
        text = record.getMessage()
        if "retrying after exception" in text:
            tell(text.partition("exception:")[2].strip() or "no answer")
