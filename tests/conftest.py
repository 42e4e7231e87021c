"""What all tests share."""

import os
import tempfile
from pathlib import Path

from absl import flags

# Before jax is imported, and for the programs that tests start: test programs run for milliseconds
# and are not worth XLA's optimisations; several tests compile the same one.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "big_vlp_compiled_tests")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Grain's worker processes want absl's flags parsed, which pytest does not do.
flags.FLAGS.mark_as_parsed()
