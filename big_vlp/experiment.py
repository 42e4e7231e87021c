"""A config turned into parts: mesh, method, optimizer, loader, evaluators; each checked on use."""

import contextlib
import dataclasses
import difflib
import functools
import json
import operator
import re
from typing import Any

import jax
import ml_collections
from flax import traverse_util
from ml_collections import config_dict

from big_vlp import bounds, determinism, flag_sets, renamed, trees
from big_vlp.methods import make_method
from big_vlp.parallel import meshes, placing, processes
from big_vlp.run import step
from big_vlp.run.optim import Optimizer, make_optimizer
from big_vlp.storage.checkpoint import Checkpoints
from big_vlp.storage.model_dir import Labels
from big_vlp.storage.warm_start import WarmStart
from big_vlp.telemetry.profile import Profile
from big_vlp.telemetry.tracker import Tracker
from evaluators.datasets import tasks
from evaluators.shared.base import make_evaluator
from evaluators.shared.records import each_opened_once
from input_pipeline.checks import arguments
from input_pipeline.checks.errors import BigVlpError
from input_pipeline.files.outages import Unreachable
from input_pipeline.loader import Loader
from input_pipeline.plans import make_plan
from input_pipeline.preprocess import Preprocess
from input_pipeline.sources import make_source
from input_pipeline.text.tokenizers import make_tokenizer
from input_pipeline.views import make_views

# Keys of a section of `evals` that are not the evaluator's.
SCHEDULE = ("every_steps", "weights", "task", "paper")


class ConfigError(BigVlpError, ValueError):
    """The config cannot be built; the message names the section and the key."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The sections of a config; their keys are the arguments of what they build.

    Attributes:
      seed: of initialisation, data order and augmentation.
      total_steps, global_batch: length of the run and rows of a batch over all processes.
      plan: `input_pipeline.plans.make_plan`: which image size and batch each step has.
      preprocess: `input_pipeline.preprocess.Preprocess`; views and method take their sizes from it.
      data: `input_pipeline.sources.make_source`.
      views: `input_pipeline.views.make_views`.
      loader: `input_pipeline.loader.Loader`, the execution part (workers, threads, prefetch).
      method: `big_vlp.methods.make_method`.
      optim: `big_vlp.run.optim.make_optimizer`.
      mesh: `big_vlp.parallel.meshes.make_mesh`.
      checkpoint: `big_vlp.storage.checkpoint.Checkpoints`.
      evals: {name: section}; a section has `evaluator`, the keys of `ScheduledEvaluator`, and those
        of that evaluator, see `evaluators.shared.base`.
      log_every_steps: of the training metrics.
      on_nonfinite: "stop" ends the run when an update was not finite, "skip" goes on without it.
      max_bad_steps: "skip" ends the run, too, when so many updates in a row were not finite.
      watchdog_minutes: without progress end a process with status 75, see `parallel.watchdog`; in
        compilation and while a checkpoint is written or read, several times as many. None waits.
      deterministic: whether a run repeats to the bit on GPUs, too, see `big_vlp.determinism`.
      xla_flags: names of `big_vlp.flag_sets.SETS`.
      profile: `big_vlp.telemetry.profile.Profile`.
      wandb: `big_vlp.telemetry.tracker.Tracker`; empty: none.
      init: {name: `big_vlp.storage.warm_start.WarmStart`}: which weights the run starts from, one
        after the other by name; what none gives is random.
    """

    total_steps: int
    global_batch: int
    preprocess: dict
    data: dict
    views: dict
    loader: dict
    method: dict
    optim: dict
    checkpoint: dict
    seed: int = 0
    plan: dict = dataclasses.field(default_factory=lambda: {"name": "constant"})
    mesh: dict = dataclasses.field(default_factory=lambda: {"data": -1, "fsdp": 1, "tensor": 1})
    evals: dict = dataclasses.field(default_factory=dict)
    log_every_steps: int = 50
    on_nonfinite: str = "stop"
    max_bad_steps: int = 20
    watchdog_minutes: float | None = 30.0
    deterministic: bool = False
    xla_flags: Any = ()  # `flag_sets.require` checks it
    profile: dict = dataclasses.field(default_factory=dict)
    wandb: dict = dataclasses.field(default_factory=dict)
    init: Any = dataclasses.field(default_factory=dict)  # `make_warm_starts` checks it

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "Experiment":
        """Checks the keys of the top level and every number (see `bounds`); what else a section
        says is checked when its part is made.

        With `deterministic` or `xla_flags`, to be called before this process uses its devices.

        Raises:
          ConfigError: a key is unknown or missing, or a value is out of range.
        """
        try:
            sections = config.to_dict()
            renamed.refuse(sections)
            bounds.check(sections)
        except config_dict.RequiredValueError as error:
            raise ConfigError(f"config: a value that must be given is not: {error}.") from error
        except ValueError as error:
            raise ConfigError(str(error)) from error
        experiment = _call("config", cls, sections)
        if experiment.on_nonfinite not in ("stop", "skip"):
            raise ConfigError(f"config.on_nonfinite={experiment.on_nonfinite!r}: stop or skip.")
        if experiment.deterministic:
            determinism.require()
        with _in_section("config.xla_flags"):
            flag_sets.require(experiment.xla_flags)
        return experiment

    def as_json(self) -> dict:
        """The config as JSON data."""
        numpy_scalar = operator.methodcaller("item")
        return json.loads(json.dumps(dataclasses.asdict(self), default=numpy_scalar))

    def check_agreed(self) -> None:
        """To be called before the processes of a run wait for each other on the devices: those that
        do different things would wait for ever.

        Raises:
          ConfigError: they have different configs; all of them raise it, at this same point.
        """
        values = {}
        for name, section in self.as_json().items():
            parts = section.items() if isinstance(section, dict) else [("", section)]
            values |= {f"config.{name}.{key}".rstrip("."): value for key, value in parts}
        if names := processes.differing(values):
            error = ConfigError(
                f"The processes of this run have different configs: they differ in "
                f"{', '.join(names)}. Give all the same command and files; a recipe evaluates what "
                "it finds in data/, so put the same sets there on every machine."
            )
            error.agreed = True
            raise error

    @functools.cached_property
    def preprocess_record(self) -> Preprocess:
        return _call("config.preprocess", Preprocess, self.preprocess)

    def make_mesh(self, devices=None):
        return _call("config.mesh", meshes.make_mesh, self.mesh, devices=devices)

    def make_method(self):
        given = {"preprocess": self.preprocess_record}
        views = self.make_views(self.preprocess_record.image_size)
        if views.num_classes is not None:
            given["num_classes"] = views.num_classes
        method = _call("config.method", make_method, self.method, **given)
        # Shapes only, within a second: towers check their arguments when they first run.
        with _in_section("config.method"):
            _ = method.shapes
            method.check_spec(views.spec())
        self._check_vocab_size(method)
        return method

    def _check_vocab_size(self, method):
        ids = getattr(method, "vocab_size", None)
        if self.preprocess_record.tokenizer is None or ids is None:
            return
        with _in_section("config.preprocess"):
            tokenizer = make_tokenizer(self.preprocess_record.tokenizer)
        if ids < tokenizer.vocab_size:
            raise ConfigError(
                f"config.method: vocab_size must be at least {tokenizer.vocab_size}, the size of "
                f"tokenizer {tokenizer.name!r}; the model's is {ids}."
            )

    def make_optimizer(self, method) -> Optimizer:
        given = {"dead": method.dead_parameters(), "declared": method.declared}
        given["total_steps"] = self.total_steps
        optimizer = _call("config.optim", make_optimizer, self.optim, **given)
        parameters, _ = trees.split_statistics(method.shapes[0])
        with _in_section("config.optim"):
            optimizer.assign(parameters)
        return optimizer

    def abstract_state(self, method, optimizer, mesh):
        """Shapes of the training state and where each array lives: jax.ShapeDtypeStruct leaves."""
        shapes = jax.eval_shape(step.make_init(method, optimizer), jax.random.key(0))
        # Parameters by themselves first: an error names each once, not its average and moments too.
        parameters = {name: shapes[name] for name in ("model", "frozen")}
        with _in_section("config.mesh"):
            placing.place(parameters, mesh, method.splits)
        return step.abstract(shapes, placing.place(shapes, mesh, method.splits))

    def make_warm_starts(self) -> list[WarmStart]:
        sections = self.init
        if not (isinstance(sections, dict) and all(isinstance(s, dict) for s in sections.values())):
            raise ConfigError(
                "config.init holds sections by name, such as dict(tower=dict(model=DIR)); {} is a "
                f"start from random weights. Here it is {sections!r}."
            )
        return [_call(f"config.init.{name}", WarmStart, s) for name, s in self.init.items()]

    def make_plan(self):
        plan = _call(
            "config.plan",
            make_plan,
            self.plan,
            image_size=self.preprocess_record.image_size,
            global_batch=self.global_batch,
            total_steps=self.total_steps,
            seed=self.seed,
        )
        steps = self.method.get("accumulate_steps", 1)
        wrong = [size for _, size in plan.shapes if size % steps]
        if wrong:
            raise ConfigError(
                f"config.method.accumulate_steps={steps} does not divide the batches {wrong}; "
                f"change {self._batch_key}."
            )
        return plan

    @property
    def _batch_key(self) -> str:
        """What to change where a batch does not divide."""
        return (
            f"config.{'plan.batch_multiple' if 'batch_multiple' in self.plan else 'global_batch'}"
        )

    def make_views(self, image_size: int):
        pre, given = self.preprocess_record, {"image_size": image_size}
        if pre.tokenizer is not None:
            given |= {"tokenizer": pre.tokenizer, "context_length": pre.context_length}
        if pre.image_token_size is not None:
            given["image_token_size"] = pre.image_token_size
        return _call("config.views", make_views, self.views, **given)

    def make_loader(self, mesh=None) -> Loader:
        """The rows that this process' devices hold on the mesh, or all rows."""
        plan, rows = self.make_plan(), None
        source = _call("config.data", make_source, self.data)
        views = {size: self.make_views(size) for size, _ in plan.shapes}
        of_any_size = next(iter(views.values()))
        _call("config.views", of_any_size.check_source, {}, source)
        if mesh is not None:
            with _in_section(self._batch_key):
                rows = {size: meshes.local_rows(mesh, size) for _, size in plan.shapes}
        return _call(
            "config.loader",
            Loader,
            self.loader,
            source=source,
            views=views,
            plan=plan,
            total_steps=self.total_steps,
            seed=self.seed,
            rows=rows,
        )

    def labels(self, loader) -> Labels | None:
        """The classes that a classifier learns: of a vocabulary, or the data source's."""
        views = next(iter(loader.views.values()))
        if (vocabulary := views.vocabulary) is not None:
            return Labels(tuple(vocabulary.names), tuple(vocabulary.keys))
        names = loader.source.class_names
        return None if views.num_classes is None or names is None else Labels(tuple(names))

    def make_checkpoints(self, workdir, *, read_only: bool = False) -> Checkpoints:
        return _call(
            "config.checkpoint", Checkpoints, self.checkpoint, workdir, read_only=read_only
        )

    def make_profile(self) -> Profile:
        return _call("config.profile", Profile, self.profile)

    def make_tracker(self, workdir) -> Tracker | None:
        if not self.wandb:
            return None
        return _call("config.wandb", Tracker, self.wandb).of(workdir, self.as_json())

    def planned_evaluators(self, method) -> dict[str, tuple["ScheduledEvaluator", dict]]:
        """{name: (what is scheduled, so far the evaluator's name; its own keys)}; opens no data."""
        planned, averaged = {}, method.shapes[1]
        for name, section in self.evals.items():
            where = f"config.evals.{name}"
            if name == "step":  # stands beside the results of the evaluators
                raise ConfigError(f"{where} needs another name: results have their step by this.")
            if not isinstance(section, dict) or "evaluator" not in section:
                others = [other for other in self.evals if other != name]
                nearest = difflib.get_close_matches(name, others, 1)
                meant = f"; did you mean {nearest[0]!r}?" if nearest else "."
                raise ConfigError(f"{where} needs the key 'evaluator'{meant}")
            settings = dict(section)
            schedule = {k: settings.pop(k) for k in SCHEDULE if k in settings}
            evaluator = settings.pop("evaluator")
            scheduled = _call(where, ScheduledEvaluator, schedule, evaluator=evaluator)
            if scheduled.weights == "averaged" and not averaged:
                raise ConfigError(
                    f"{where}.weights is 'averaged', but method {self.method['name']!r} averages "
                    "nothing; use 'model'."
                )
            planned[name] = scheduled, settings
        return planned

    def make_evaluators(self, method, mesh) -> dict[str, "ScheduledEvaluator"]:
        made, given = {}, (method.predict_fns(), self.preprocess_record, mesh)
        with each_opened_once():
            for name, (scheduled, settings) in self.planned_evaluators(method).items():
                where = f"config.evals.{name}"
                evaluator = _call(where, make_evaluator, settings, scheduled.evaluator, *given)
                made[name] = dataclasses.replace(scheduled, evaluator=evaluator)
        return made


@dataclasses.dataclass(frozen=True)
class ScheduledEvaluator:
    """An evaluator, when it runs, and on which weights.

    Attributes:
      every_steps: of training; it runs after the last one, too.
      weights: "model" or "averaged".
      task, paper: which row of the table that `evaluate` ends with it fills, and whose published
        numbers stand beside, see `evaluators.datasets.tasks`; set by suites.
    """

    evaluator: Any
    every_steps: int
    weights: str = "model"
    task: str | None = None
    paper: str | None = None

    def __post_init__(self):
        if self.weights not in ("model", "averaged"):
            raise ValueError(f"weights={self.weights!r}; choose model or averaged.")
        if self.task is not None:
            tasks.task(self.task)
        if self.paper is not None:
            tasks.paper(self.paper)

    def is_due(self, step: int, total_steps: int) -> bool:
        return step == total_steps or (step > 0 and step % self.every_steps == 0)

    def run(self, state) -> dict[str, float]:
        """Metrics of a state {"model", "averaged", "frozen"}."""
        if not state[self.weights]:
            raise ConfigError(f"There are no {self.weights} weights to evaluate in this method.")
        return dict(self.evaluator.run(trees.merge(state[self.weights], state["frozen"])))


def config_changes(old: dict, new: dict) -> list[str]:
    """One line for each value that differs between two nested dicts of JSON data."""
    old, new = (traverse_util.flatten_dict(d, sep=".") for d in (old, new))
    return [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted({*old, *new})
        if key != "step" and old.get(key, "absent") != new.get(key, "absent")
    ]


def _call(where: str, fn, section: dict, /, *args, **given):
    """`fn(*args, **given, **section)`; what is wrong with a key names the section."""
    with _in_section(where):
        return arguments.call("", fn, section, *args, **given)


@contextlib.contextmanager
def _in_section(where: str):
    """What is said to whoever wrote a section names it; other errors are bugs, and stay."""
    try:
        yield
    except (ConfigError, Unreachable):
        raise
    except re.error as error:
        raise ConfigError(f"{where}: {error.pattern!r} is no regex: {error}.") from error
    except (arguments.ArgumentError, ValueError, OSError) as error:
        raise ConfigError(f"{where}: {error}") from error
