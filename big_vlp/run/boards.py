"""TensorBoard's files of a run, on a disk or in a bucket."""

import math
import os
import tempfile
from pathlib import Path

from tensorboardX import SummaryWriter

from input_pipeline.files.buckets import is_in_bucket
from input_pipeline.files.whole import write_whole

DIRECTORY = "tensorboard"
# Of a file in a bucket: so much at most is written again for what is added.
_FILE_BYTES = 512 * 1024


class Board:
    """Scalars of a run that starts, or goes on, at a step; TensorBoard drops what it had of later.

    In a bucket a file is written here, copied whole at each `flush`, and followed by another when
    it has grown.

    Args:
      workdir: of the run.
      start_step: see above.
    """

    def __init__(self, workdir, start_step: int):
        self._directory = workdir / DIRECTORY
        self._here = None
        if is_in_bucket(workdir):
            self._here = tempfile.TemporaryDirectory(prefix="big_vlp_tensorboard_")
        self._files = 0
        self._open(start_step)

    def add(self, step: int, split: str, name: str, value: float, now: float) -> None:
        """A number at a step, of the time `now` (seconds since 1970); skips NaN and infinities."""
        if math.isfinite(value):
            # TensorBoard allows no "@" in a name.
            tag = f"{split}/{name}".replace("@", "_at_")
            self._writer.add_scalar(tag, value, step, walltime=now)
            self._step = step

    def flush(self) -> None:
        """Brings what was added to a bucket; on a disk TensorBoard's writer does so by itself."""
        if self._here is None:
            return
        self._writer.flush()
        if self._copy() > _FILE_BYTES:
            self._writer.close()
            self._open(None)

    def close(self) -> None:
        self._writer.close()
        if self._here is not None:
            self._copy()
            self._here.cleanup()

    def _open(self, purge_step: int | None) -> None:
        # Names begin with the second, and two files of one second must differ.
        start = purge_step if purge_step is not None else self._step
        suffix = f".from_step_{start}" if not self._files else f".{self._files:05d}"
        self._files += 1
        where = str(self._directory)
        if self._here is not None:
            where = os.path.join(self._here.name, str(self._files))
        self._writer = SummaryWriter(where, purge_step=purge_step, filename_suffix=suffix)

    def _copy(self) -> int:
        """Bytes of the file that is written now."""
        size = 0
        for path in Path(self._here.name, str(self._files)).iterdir():
            data = path.read_bytes()
            size += len(data)
            write_whole(self._directory / path.name, data)
        return size
