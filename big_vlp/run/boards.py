"""TensorBoard's files of a run, on a disk or in a bucket."""

import contextlib
import io
import math
import socket
import struct
import time
from collections.abc import Mapping

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from input_pipeline.files.buckets import is_in_bucket, make_directory
from input_pipeline.files.whole import write_whole

DIRECTORY = "tensorboard"
_VERSION = "brain.Event:2"
# Of a file in a bucket: so much at most is written again for what is added.
_FILE_BYTES = 512 * 1024


class Board:
    """Scalars of a run that starts, or goes on, at a step; TensorBoard drops what it had of later.

    In a bucket a file is held in memory, written whole at each `write`, and followed by another
    when it has grown. Without the thread of tensorboardX' own writer, which a full disk ends in
    silence.

    Args:
      workdir: of the run.
      start_step: see above.
    """

    def __init__(self, workdir, start_step: int):
        self._directory, self._start_step = workdir / DIRECTORY, start_step
        self._in_bucket = is_in_bucket(workdir)
        self._files, self._file, self._path = 0, None, None
        self._begun = False

    def write(self, step: int, split: str, values: Mapping[str, float], now: float) -> None:
        """Adds numbers at a step, of the time `now` (seconds since 1970); they are in a file when
        this returns. Skips NaN and infinities.

        Raises:
          OSError: on a disk these numbers are lost, in a bucket they come with the next.
        """
        try:
            if self._file is None:
                self._open()
            for name, value in values.items():
                if math.isfinite(value):
                    # TensorBoard allows no "@" in a name.
                    summary = scalar(f"{split}/{name}".replace("@", "_at_"), value)
                    self._add(Event(wall_time=now, step=step, summary=summary))
            self._file.flush()
        except OSError:
            self.close()  # it may hold half a record, after which nobody reads on
            raise
        if self._in_bucket:
            write_whole(self._path, self._file.getvalue())
            if self._file.tell() > _FILE_BYTES:
                self.close()
        self._begun = True

    def close(self) -> None:
        """Ends the file; `write` begins another one."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # of what `write` has flushed nothing is left
                self._file.close()
            self._file = None

    def _open(self) -> None:
        # Names begin with the second, and two files of one second must differ.
        number = f".{self._files:05d}" if self._files else f".from_step_{self._start_step}"
        self._files += 1
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}{number}"
        self._path = self._directory / name
        make_directory(self._directory)
        self._file = io.BytesIO() if self._in_bucket else open(self._path, "wb")  # noqa: SIM115
        self._add(Event(wall_time=time.time(), file_version=_VERSION))
        if not self._begun:
            start = self._start_step
            self._add(Event(step=start, file_version=_VERSION))
            self._add(Event(step=start, session_log=SessionLog(status=SessionLog.START)))

    def _add(self, event: Event) -> None:
        """As a TFRecord: length, its checksum, the event, its checksum."""
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        for part in (length, _checksum(length), data, _checksum(data)):
            self._file.write(part)


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))
