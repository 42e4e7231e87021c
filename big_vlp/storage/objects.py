"""Orbax in a bucket of s3://, which it takes for a directory of the disk; it knows gs:// alone.

A directory cannot be renamed there: what is complete has an object that is written last, as Orbax
does it for gs://, and TensorStore's own driver writes the arrays. There is no public way to say so,
so four functions inside Orbax are replaced, once, before the first checkpoint on s3://.
"""

import functools
import importlib.metadata
import inspect
import os
import re

from etils import epath

from big_vlp.storage.agreement import CheckpointError
from input_pipeline.files import amazon

_KNOWN = "0.12.8"
_S3 = re.compile(r"s3:/+(?P<bucket>[^/]+)/?(?P<path>.*)", re.DOTALL)  # Orbax leaves one "/"


@functools.cache
def teach_orbax() -> None:
    """Has Orbax treat s3:// as it treats gs://, in all of this process.

    Raises:
      CheckpointError: its inside is not the known one.
    """
    try:
        _replace()
        _try_out()
    except Exception as error:
        found = importlib.metadata.version("orbax-checkpoint")
        raise CheckpointError(
            f"Checkpoints on s3:// need orbax-checkpoint as it is inside in {_KNOWN}, and {found} "
            f"is another ({type(error).__name__}: {error}): install {_KNOWN}, or give a --workdir "
            "on a disk or on gs://."
        ) from error


def _replace() -> None:
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    def either(is_on_google):
        return lambda path: is_on_google(path) or _S3.match(str(path)) is not None

    def kvstore_of(google):
        return lambda path: _kvstore(path) if _S3.match(path) else google(path)

    def file_size_of(others):
        of_google = tensorstore_utils._GCS_OCDBT_TARGET_DATA_FILE_SIZE
        return lambda spec: of_google if "'driver': 's3'" in str(spec) else others(spec)

    found = []
    for module, name, argument, replacement in (
        (gcs_utils, "is_gcs_path", "path", either),
        (gcs_utils, "get_kvstore_for_gcs", "ckpt_path", kvstore_of),
        (tensorstore_utils, "_use_gcs_driver", "directory", either),
        (
            tensorstore_utils,
            "_get_backend_ocdbt_target_data_file_size",
            "kvstore_spec",
            file_size_of,
        ),
    ):
        function = getattr(module, name)
        if list(inspect.signature(function).parameters) != [argument]:
            raise TypeError(f"{name}{inspect.signature(function)}")
        found.append((module, name, functools.wraps(function)(replacement(function))))
    for replaced in found:
        setattr(*replaced)


def _try_out() -> None:
    """Whether what Orbax now plans for s3:// is what it should be."""
    from orbax.checkpoint._src.path import atomicity, atomicity_defaults
    from orbax.checkpoint._src.serialization import tensorstore_utils

    path = "s3://bucket/run/1/model"
    chosen = atomicity_defaults.get_default_temporary_path_class(epath.Path(path))
    if chosen is not atomicity.CommitFileTemporaryPath:
        raise TypeError(f"{chosen.__name__} for {path}")
    for use_ocdbt in (True, False):
        spec = tensorstore_utils.build_kvstore_tspec(path, "name", use_ocdbt=use_ocdbt)
        if "'driver': 's3'" not in str(spec):
            raise TypeError(f"{spec} for {path}")


def _kvstore(path: str) -> dict:
    """What TensorStore is told; it finds the credentials by itself."""
    spec = {"driver": "s3", **_S3.match(path).groupdict()}
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        # Else it says of each source of credentials that has none that it failed.
        spec["aws_credentials"] = {"type": "environment"}
    if found := amazon.region():
        spec["aws_region"] = found
    if found := amazon.endpoint():
        spec["endpoint"] = found
    return spec
