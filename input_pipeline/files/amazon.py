"""s3:// by s3fs, for all libraries that go through fsspec; of Amazon, or of any other endpoint.

Where it is and who asks is said by the variables and files of Amazon's own tools.
"""

import asyncio
import io
import os
import random

from input_pipeline.files.outages import COMMITTED, Unreachable, tell, text_of

# Between the tries of a request, and up to a second more.
_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
_PASSING_CODES = {
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "ConditionalRequestConflict",
    "OperationAborted",
}
_SMALL = 2**20  # bytes


def endpoint() -> str | None:
    """Of another service than Amazon's: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL."""
    found = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return found.rstrip("/") if found else None


def region() -> str | None:
    """AWS_REGION or AWS_DEFAULT_REGION; None is for the service to say."""
    found = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return found or ("us-east-1" if endpoint() else None)


def connect() -> None:
    """Before the first use: the file system of these URLs becomes ours."""
    import aiohttp
    import fsspec
    import s3fs
    from botocore import exceptions as botocore
    from botocore.parsers import ResponseParserError
    from fsspec.asyn import sync_wrapper

    passing = (
        TimeoutError,
        ConnectionError,
        aiohttp.ClientError,
        botocore.HTTPClientError,
        botocore.ConnectionError,
        fsspec.exceptions.FSTimeoutError,
        ResponseParserError,
    )

    class AmazonFiles(s3fs.S3FileSystem):
        retries = 1  # of s3fs' own, which are not told

        async def _call_s3(self, method, *args, **options):
            for wait in _WAITS:
                try:
                    return await self._answer(method, *args, **options)
                except Unreachable as error:
                    tell(str(error))
                await asyncio.sleep(wait + random.random())
            return await self._answer(method, *args, **options)

        call_s3 = sync_wrapper(_call_s3)

        async def _answer(self, method, *args, **options):
            try:
                answer = await super()._call_s3(method, *args, **options)
                if "Body" in answer:  # here, as it may be cut
                    answer["Body"] = _Body(await answer["Body"].read())
            except passing as error:
                raise Unreachable(text_of(error)) from None
            except OSError as error:
                raise _as_said(error, options) from None
            except (botocore.BotoCoreError, ValueError) as error:
                raise OSError(text_of(error)) from None
            for error in answer.get("Errors", []):  # of single objects, which s3fs does not read
                kind = Unreachable if _passes(200, error["Code"]) else OSError
                raise kind(f"{error['Code']}: {error.get('Key')}: {error.get('Message')}")
            return answer

        def _open(self, path, mode="rb", **options):
            file = super()._open(path, mode, **options)
            # As a whole, as it was at one time: others may write it anew between two requests.
            if mode == "rb" and file.size <= _SMALL:
                return io.BytesIO(self.cat_file(path, max_concurrency=1))
            return file

        def mkdir(self, path, **_):
            """There are no directories, and a bucket is made by its owner only."""

        makedirs = mkdir

        def mv(self, path1, path2, **_):
            """s3fs' own takes the directories of a directory for objects, and fails."""
            path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
            names = [name.removeprefix(path1) for name in self.find(path1)]
            self.copy(
                [path1 + name for name in names],
                [path2 + name for name in names],
                on_error="raise",
            )
            self.rm(path1, recursive=True)

        async def _rm(self, path, recursive=False, **options):
            if recursive and isinstance(path, str):
                await self._rm_file(f"{path}/{COMMITTED}")
            return await super()._rm(path, recursive=recursive, **options)

    fsspec.register_implementation("s3", AmazonFiles, clobber=True)
    settings = fsspec.config.conf.setdefault("s3", {})
    # No list of files is remembered: others write there, too.
    settings["use_listings_cache"] = False
    settings["client_kwargs"] = {"endpoint_url": endpoint(), "region_name": region()}
    settings["config_kwargs"] = {"retries": {"total_max_attempts": 1}}
    if endpoint():  # as TensorStore does
        settings["config_kwargs"]["s3"] = {"addressing_style": "path"}


class _Body(io.BytesIO):
    """What was read of an answer."""

    async def read(self, size=-1):
        return super().read(size)


def _passes(status: int, code: str) -> bool:
    return status in (408, 429) or (status >= 500 and status != 501) or code in _PASSING_CODES


def _as_said(error: OSError, options: dict) -> OSError:
    """An error of s3fs with what the service said and of what."""
    answer = getattr(error.__cause__, "response", None)
    if not answer:
        return error
    code, bucket = str(answer["Error"].get("Code")), options.get("Bucket")
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    where = "/".join(name for name in (f"s3://{bucket}", options.get("Key")) if name)
    text = f"{code}: {answer['Error'].get('Message') or 'no reason given'} ({where})"
    if _passes(status, code):
        return Unreachable(text)
    if code == "NoSuchBucket":
        return FileNotFoundError(f"there is no bucket {bucket!r}")
    if status == 412 and "IfNoneMatch" in options:
        return FileExistsError(where)
    kinds = (FileNotFoundError, PermissionError)
    return next((kind for kind in kinds if isinstance(error, kind)), OSError)(text)
