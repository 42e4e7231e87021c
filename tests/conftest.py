"""What all tests share."""

import collections
import gc
import os
import resource
import signal
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest
from absl import flags

# Before jax is imported, and for the programs that tests start: test programs run for milliseconds
# and are not worth XLA's optimisations; several tests compile the same one.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if version("jaxlib").startswith("0.10."):  # later ones do not know the flag, and stop at it
    # The former emitters compile in a third of the time.
    flags_given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags_given} --xla_cpu_use_fusion_emitters=false".strip()
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "big_vlp_compiled_tests")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NO_GCE_CHECK", "true")  # whichever machine this is, its server is not asked

# Shells start jobs in the background with Ctrl-C ignored, and so do the programs that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Grain's worker processes want absl's flags parsed, which pytest does not do.
flags.FLAGS.mark_as_parsed()

MOST_BYTES = 2 * 2**30  # of a process that runs tests, before it forgets what it has compiled


class CpuMinutes:
    """CPU time of each test file, with that of the programs it starts; said after long runs."""

    FILES = 10

    def __init__(self):
        self.last, self.seconds = self.now(), collections.Counter()

    @staticmethod
    def now() -> float:
        return sum(os.times()[:4])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        report.cpu_seconds, self.last = self.now() - self.last, self.now()
        return report

    def pytest_runtest_logreport(self, report):  # in the main process, whichever ran the test
        self.seconds[report.location[0]] += getattr(report, "cpu_seconds", 0)  # none of a crash

    def pytest_terminal_summary(self, terminalreporter):
        if len(self.seconds) <= self.FILES:
            return
        total = sum(self.seconds.values())
        terminalreporter.section(f"{total / 60:.1f} CPU minutes, of which")
        for file, seconds in self.seconds.most_common(self.FILES):
            terminalreporter.write_line(f"{seconds / 60:6.1f}  {file}")


def pytest_configure(config):
    config.pluginmanager.register(CpuMinutes())


def pytest_collection_finish():
    """What was imported stays; to look through it again and again takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """JAX keeps what it has compiled; files hardly share any, and a whole suite makes gigabytes."""
    yield
    if "jax" in sys.modules and Path("/proc/self/statm").exists():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        if pages * resource.getpagesize() > MOST_BYTES:
            sys.modules["jax"].clear_caches()
            gc.collect()


pytest_plugins = ["tests.bucket_server"]
