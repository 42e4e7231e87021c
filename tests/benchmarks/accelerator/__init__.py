"""What the project does on a GPU or TPU: speed of its steps, errors of its kernels and recipes.

To be run where an accelerator is at hand, within `minutes` (docs/benchmarks.md). Rows, in the order
in which they are made; each is known, and saved, before the next begins:

- a: the devices and versions.
- d: full-size training steps in bf16 from random batches that live on the device, as the training
  loop compiles them: CLIP B/16 first. Of several batches the largest that fits. The median of 10
  steps after 3, each from its call until the device is done. TFLOP/s and MFU take the model's
  FLOPs (`flops`): recomputation is none of them.
- e: the same CLIP in PyTorch at the same batch (`torch_steps`), right after ours.
- f: the costliest kernels of a step of the two first models.
- c: attention forward and backward by each kernel that `models.layers.attention` could pick, with
  the largest error against fp32, or how it refuses. First the shapes of the recipes.
- b: recipes in their laptop version, in bf16: three steps, the evaluations, a generation; beside
  the losses those that a CPU has in fp32.

Each is called in a child process with a time limit of its own: what hangs, crashes or does not fit
is a row that says so. Steps have a process to themselves; attention and recipes share one as long
as it lives. This process leaves the devices alone. Compilations are shared through jax's persistent
cache.
"""

import concurrent.futures
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.accelerator import flops, recipes
from tests.benchmarks.accelerator.child import Child
from tests.benchmarks.accelerator.models import candidates, names, variants
from tests.benchmarks.common import CannotRunError

# Sections in their order: letter, the method that makes the rows, and its share of the time; what
# one leaves over is the later ones'.
SECTIONS = (
    ("a", "devices", 4),
    ("d", "first_steps", 24),
    ("e", "torch_steps", 16),
    ("d", "other_steps", 32),
    ("f", "kernels", 8),
    ("c", "attention_of_recipes", 12),
    ("b", "recipes", 30),
    ("c", "attention_beside", 30),
)
LETTERS = sorted({letter for letter, _, _ in SECTIONS})
# Seconds that one call may take.
LIMITS = {"devices": 90, "steps": 180, "torch_steps": 180, "kernels": 90, "attention": 45}
LIMITS |= {"recipes": 150, "flops": 300}
TINY_LIMITS = 10  # times as much, for a CPU that others use too
LEAST = 2  # seconds below which nothing is begun
NO_TIME = "no time left"

PROFILED = 2  # models
BACKENDS = {"gpu": ("xla", "cudnn"), "tpu": ("xla", "rows", "flash"), "cpu": ("xla", "cudnn")}
# length, head size, causal, kind: the towers of the recipes at their sizes, and the language model.
ATTENTION_OF_RECIPES = (
    (197, 64, False, "plain"),
    (77, 64, True, "plain"),
    (37, 64, False, "plain"),
    (50, 64, False, "plain"),
    (257, 64, False, "plain"),
    (197, 64, False, "one query"),
    (77, 64, False, "one query"),
    (257, 112, False, "plain"),
    (323, 128, True, "plain"),
    (323, 128, True, "grouped keys"),
    (323, 128, False, "mask"),
    (1292, 128, True, "plain"),
    (1292, 128, True, "grouped keys"),
    (577, 64, False, "plain"),
)
LENGTHS = (37, 50, 77, 197, 257, 323, 577, 1292)
ATTENTION_BESIDE = (
    *((n, size, causal, "plain") for size in (64, 112, 128) for causal in (False, True)
      for n in LENGTHS),
    *((n, size, False, "mask") for size in (64, 112, 128) for n in LENGTHS),
    *((n, size, False, "one query") for size in (64, 128) for n in LENGTHS),
    *((n, size, True, "grouped keys") for size in (64, 128) for n in LENGTHS),
)  # fmt: skip
TINY_ATTENTION = ((9, 16, True, "grouped keys"), (9, 16, False, "one query"))
TINY_ATTENTION_BESIDE = ((10, 8, False, "mask"),)
TINY_RECIPE = "cogvlm"  # it can do all that the others can


def measure(minutes: float = 8.0, tiny: bool = False, only: str = "") -> Iterator[dict]:
    """Args: time for all rows; tiny=true takes small sizes and a few cases, also on a CPU;
    only=b+c makes these rows alone, after a."""
    letters = set(only.split("+")) if only else set(LETTERS)
    if unknown := sorted(letters - set(LETTERS)):
        raise CannotRunError(f"only={only}: no rows {unknown[0]!r}; join some of {LETTERS} by +.")
    chosen = [section for section in SECTIONS if section[0] in letters | {"a"}]
    whole = sum(share for _, _, share in chosen)
    with tempfile.TemporaryDirectory(prefix="accelerator_", ignore_cleanup_errors=True) as folder:
        session, end = Session(folder, tiny), time.monotonic()
        try:
            for letter, make, share in chosen:
                end = session.end = end + 60 * minutes * share / whole
                late = []
                for row in getattr(session, make)():
                    if row.get("skipped") == NO_TIME:
                        late.append(row["case"])
                    else:
                        yield {"row": letter, **row}
                if late:
                    yield {
                        "row": letter,
                        "case": f"{len(late)} more",
                        "skipped": NO_TIME,
                        "cases": "; ".join(late),
                    }
        finally:
            session.close()


class Session:
    """Makes the rows; a method for each of SECTIONS.

    Attributes:
      end: when the rows that are being made must be there, by time.monotonic().
    """

    def __init__(self, folder: str, tiny: bool):
        self._folder, self._tiny, self._names = folder, tiny, names(tiny)
        cache = {
            "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR")
            or str(Path(folder) / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": os.environ.get(
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5"
            ),
        }
        self._device = Child(cache)
        # Beside the device: what is counted or compared on a CPU.
        self._cpu = Child({**cache, "JAX_PLATFORMS": "cpu"})
        self._beside, self._asked = concurrent.futures.ThreadPoolExecutor(1), []
        self._flops = {}
        self._best = {}  # model -> arguments of its fastest step

    def close(self) -> None:
        self._beside.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in self._asked):
            self._cpu.close()
            time.sleep(0.05)
        self._cpu.close()
        self._device.close()

    def devices(self):
        found = self._device.call(f"{__name__}.devices:measure", {}, self._limit("devices"))
        if "error" in found:
            raise CannotRunError(f"jax finds no devices: {found['error']}")
        if found["platform"] == "cpu" and not self._tiny:
            raise CannotRunError(
                "jax sees no accelerator here, only a CPU (JAX_PLATFORMS="
                f"{os.environ.get('JAX_PLATFORMS', '')!r}); accelerator:tiny=true runs it in small."
            )
        self._found = found
        yield {"case": "devices", **found}

    def first_steps(self):
        first = self._names[0]
        yield from self._steps((first, variant) for variant in variants(first, self._tiny))

    def other_steps(self):
        rest = [(name, variants(name, self._tiny)) for name in self._names[1:]]
        longest = max(len(found) for _, found in rest)
        yield from self._steps(
            (name, found[i]) for i in range(longest) for name, found in rest if i < len(found)
        )

    def _steps(self, pairs):
        for model, (remat, unroll) in pairs:
            counted = self._count(model)
            asked = {"model": model, "remat": remat, "unroll": unroll}
            more = {"candidates": candidates(model, self._tiny)}
            found = self._call("steps:measure", {**asked, **more, **self._common()}, alone=True)
            case = f"{model}, remat {remat or 'none'}, {'unrolled' if unroll else 'scan'}"
            if "samples_per_s" in found:
                chosen = next(c for c in more["candidates"] if c not in found["too_large"])
                best = self._best.get(model)
                if best is None or best[0] < found["samples_per_s"]:
                    self._best[model] = found["samples_per_s"], {**asked, "candidates": [chosen]}
                found = self._with_rates(found, counted, self._found["devices"])
            yield {"case": case, **found}

    def torch_steps(self):
        model = self._names[0]
        counted, best = self._count(model), self._best.get(model)
        sizes = candidates(model, self._tiny)
        if best is not None:  # ours, or what fits below it
            sizes = sizes[sizes.index(best[1]["candidates"][0]) :]
        arguments = {"model": model, "candidates": sizes, **self._common()}
        found = self._call("torch_steps:measure", arguments, alone=True)
        yield {"case": f"{model} in PyTorch", **self._with_rates(found, counted, devices=1)}

    def kernels(self):
        for model in self._names[: 1 if self._tiny else PROFILED]:
            remat, unroll = variants(model, self._tiny)[0]
            asked = {"model": model, "remat": remat, "unroll": unroll}
            asked["candidates"] = candidates(model, self._tiny)
            asked |= self._best.get(model, (None, {}))[1]
            found = self._call("kernels:measure", {**asked, **self._common()}, alone=True)
            case = f"{model}, remat {asked['remat'] or 'none'}, "
            yield {"case": case + ("unrolled" if asked["unroll"] else "scan"), **found}

    def attention_of_recipes(self):
        yield from self._attention(TINY_ATTENTION if self._tiny else ATTENTION_OF_RECIPES)

    def attention_beside(self):
        shapes = TINY_ATTENTION_BESIDE if self._tiny else ATTENTION_BESIDE
        yield from self._attention(s for s in shapes if s not in ATTENTION_OF_RECIPES)

    def _attention(self, shapes):
        for length, head_size, causal, kind in shapes:
            for backend in BACKENDS[self._found["platform"]]:
                shape = {"length": length, "head_size": head_size, "causal": causal, "kind": kind}
                asked = {**shape, "backend": backend, "tiny": self._tiny}
                seen = ", causal" if causal else ""
                case = f"{length} x {head_size}{seen}, {kind}, {backend}"
                yield {"case": case, **self._call("attention:measure", asked)}

    def recipes(self):
        cases = recipes.cases()
        if self._tiny:
            cases = [next(case for case in cases if case["recipe"] == TINY_RECIPE)]
        asked = [{**case, "folder": self._folder} for case in cases]
        on_cpu = [self._call_beside("recipes:run", {**case, "dtype": "float32"}) for case in asked]
        for case, beside in zip(asked, on_cpu):
            found = self._call("recipes:run", {**case, "dtype": "bfloat16"})
            beside = self._result(beside) if "losses" in found else {}
            name = f"{case['recipe']}:{case['options']}"
            name += "".join(f",{key}={value}" for key, value in case["values"].items())
            row = {"case": name, **found}
            if "losses" in beside:
                row["losses_cpu_fp32"] = beside["losses"]
                row["evaluations_cpu_fp32"] = beside["evaluations"]
            elif beside:
                row["cpu_fp32"] = beside
            yield row

    def _common(self) -> dict:
        return {"tiny": self._tiny, "folder": self._folder}

    def _call(self, name: str, arguments: dict, alone=False) -> dict:
        """What a function "module:name" of this package returns for the device."""
        left = self.end - time.monotonic()
        if left < LEAST:
            return {"skipped": NO_TIME}
        limit = min(left, self._limit(name))
        return self._device.call(f"{__name__}.{name}", arguments, limit, alone and not self._tiny)

    def _limit(self, name: str) -> float:
        return LIMITS[name.split(":")[0]] * (TINY_LIMITS if self._tiny else 1)

    def _call_beside(self, name: str, arguments: dict) -> concurrent.futures.Future:
        """The same of a CPU, one after the other, while the device goes on."""
        function, limit = f"{__name__}.{name}", self._limit(name)
        call = self._beside.submit(self._cpu.call, function, arguments, limit)
        self._asked.append(call)
        return call

    def _result(self, call: concurrent.futures.Future) -> dict:
        try:
            return call.result(max(0.0, self.end - time.monotonic()))
        except concurrent.futures.TimeoutError:
            return {"skipped": NO_TIME}

    def _count(self, model: str) -> concurrent.futures.Future:
        """A model's FLOPs to come; those of all models begin to be counted at the first."""
        if not self._flops:
            for name in self._names:
                arguments = {"model": name, **self._common()}
                self._flops[name] = self._call_beside("flops:count", arguments)
        return self._flops[model]

    def _with_rates(self, found: dict, counted, devices: int) -> dict:
        """With TFLOP/s and MFU, where something was measured."""
        if "samples_per_s" not in found:
            return found
        of_model = self._result(counted)
        if "base" not in of_model:
            return {**found, "flops": of_model}
        per_sample = flops.total(of_model, found["layers"])
        tflops = per_sample * found["samples_per_s"] / devices / 1e12
        peak = self._found["peak_tflops"]
        mfu = tflops / peak if peak else None
        return {**found, "gflops_per_sample": per_sample / 1e9, "tflops": tflops, "mfu": mfu}
