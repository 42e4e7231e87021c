"""Compiled programs in a bucket: the next process takes them from there."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from big_vlp.run.compile_cache import CompileCacheError, open_compile_cache
from tests.bucket_server import SERVERS

ROOT = Path(__file__).parents[3]
# Compiles a program of its own, and says how often JAX found one.
PROGRAM = """
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("/cache_hits")))
from big_vlp.run.compile_cache import open_compile_cache
open_compile_cache()
jax.jit(lambda x: jnp.sin(x) @ x.T + 3)(jnp.ones((7, 5)))
print("hits:", sum(hits))
"""


@pytest.fixture(scope="module", params=SERVERS)
def scheme(request):
    return request.param


def test_the_next_process_finds_it(bucket):
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(bucket),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
    }
    run = [sys.executable, "-c", PROGRAM]
    ended = [subprocess.run(run, env=environment, text=True, capture_output=True) for _ in "12"]
    assert not any("persistent compilation cache" in end.stderr for end in ended)
    assert ended[0].stdout == "hits: 0\n"
    assert int(ended[1].stdout.removeprefix("hits: ")) > 0
    names = [path.name for path in bucket.iterdir()]
    assert any(name.endswith("-cache") for name in names)


@pytest.fixture
def point_to():
    """Sets the place for this process, as the variable does at its start."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_enable_xla_caches")
    before = {name: getattr(jax.config, name) for name in names}
    yield lambda where: jax.config.update(names[0], where)
    for name in names:
        jax.config.update(name, before[name])


def test_a_missing_bucket_is_one_error(bucket_server, scheme, point_to):
    point_to(f"{scheme}://missing/cache")
    why = r"missing/cache cannot be used \(there is no bucket 'missing'\)"
    with pytest.raises(CompileCacheError, match=why):
        open_compile_cache()


def test_one_that_may_not_be_written_is_one_error(bucket_server, bucket, point_to):
    point_to(str(bucket))
    with (
        bucket_server.faults.spoiling(lambda *_: 403),
        pytest.raises(CompileCacheError, match=r"403|Forbidden"),
    ):
        open_compile_cache()


def test_another_url_is_one_error(point_to):
    point_to("az://a/cache")
    with pytest.raises(CompileCacheError, match="JAX_COMPILATION_CACHE_DIR=az://a/cache"):
        open_compile_cache()
