"""Compiled programs in a folder of the user's or in a bucket: the next process takes them."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import logging

from big_vlp.run.compile_cache import CompileCacheError, _kind_of_cpu, open_compile_cache
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


def hits_of_two(**variables):
    """Of two processes, one after the other."""
    names = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    environment = {k: v for k, v in os.environ.items() if k not in names}
    environment |= {**variables, "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-c", PROGRAM]
    ended = [subprocess.run(run, env=environment, text=True, capture_output=True) for _ in "12"]
    assert not any("persistent compilation cache" in end.stderr for end in ended)
    return [int(end.stdout.removeprefix("hits: ")) for end in ended]


def test_the_next_process_finds_it(bucket):
    first, second = hits_of_two(JAX_COMPILATION_CACHE_DIR=str(bucket))
    assert first == 0 and second > 0
    assert any(path.name.endswith("-cache") for path in bucket.iterdir())


def test_by_default_it_finds_it_in_the_users_cache(tmp_path):
    """Though it compiles in less than the second that JAX asks for."""
    first, second = hits_of_two(XDG_CACHE_HOME=str(tmp_path))
    assert first == 0 and second > 0
    (kind,) = (tmp_path / "big_vlp" / "compiled").iterdir()
    assert any(path.name.endswith("-cache") for path in kind.iterdir())


@pytest.fixture
def point_to():
    """Sets the place for this process, as the variable does at its start."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_enable_xla_caches",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_enable_compilation_cache",
    )
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


def test_a_word_turns_it_off(point_to):
    point_to("off")
    for _ in range(2):
        open_compile_cache()
        assert not jax.config.jax_enable_compilation_cache


def test_another_folder_is_taken_as_it_is(point_to, tmp_path):
    point_to(str(tmp_path))
    open_compile_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)


def test_a_home_that_cannot_be_written_is_said(point_to, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    point_to(None)
    open_compile_cache()
    assert jax.config.jax_compilation_cache_dir is None
    (text,) = said
    assert "not kept" in text and "JAX_COMPILATION_CACHE_DIR" in text and "'off'" in text


def test_cpus_that_differ_have_folders_of_their_own(monkeypatch, tmp_path):
    kinds = set()
    for flags in ("sse avx2", "sse avx512f"):
        told = f"processor: 0\nmodel name\t: AMD\nflags\t\t: {flags}\ncpu MHz: 1\n\nprocessor: 1"
        monkeypatch.setattr(Path, "read_text", lambda self, told=told: told)
        kinds.add(_kind_of_cpu())
    assert len(kinds) == 2
