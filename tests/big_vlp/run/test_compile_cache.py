"""Compiled programs in a bucket: the next process takes them from there."""

import os
import subprocess
import sys

import jax
import pytest

from big_vlp.run.compile_cache import CompileCacheError, open_compile_cache
from tests.bucket_server import SERVERS

# Compiles a program of its own, and says how often JAX found one.
PROGRAM = """
import jax, jax.numpy as jnp
from jax._src import monitoring
hits = []
monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("/cache_hits")))
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
    }
    run = [sys.executable, "-W", "error", "-c", PROGRAM]
    found = [subprocess.check_output(run, env=environment, text=True) for _ in range(2)]
    assert found[0] == "hits: 0\n" and found[1] != found[0]
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
    with pytest.raises(CompileCacheError, match="missing/cache cannot be used: there is no bucket"):
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
