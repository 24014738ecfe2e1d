"""Every knob turns something: each field of each value that an experiment is made of is changed, and what is computed
from the experiment has to change with it, or the field is declared inert, with the reason.

Looked at are the first batches and the text of lowered programs, which holds nothing whose result is not used.
"""

import dataclasses
import hashlib
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import experiment, value
from lm.data.loader import Batches, prepare
from lm.data.prompts import Rollouts
from lm.data.records import Tfds
from lm.data.repeats import Repeats
from lm.data.stdlib import Stdlib
from lm.decode.filters import Counts
from lm.experiment import Evaluation, Experiment
from lm.inspect.watching import Watching
from lm.machine.tracking import WandB
from lm.model.output import Classifier, NoOutput, Output
from lm.model.parts import RMSNorm
from lm.model.transformer import Transformer
from lm.sharding.mesh import make_mesh
from lm.sharding.rules import Layout
from lm.train.step import build_step, state_shardings
from lm.tune.completion_eval import CompletionEval
from lm.tune.dpo import DPO
from lm.tune.grpo import GRPO
from lm.tune.kl_control import AdaptiveKL, FixedKL
from lm.tune.kto import KTO
from lm.tune.on_policy_method import OnPolicyMethod
from lm.tune.online_dpo import OnlineDPO
from lm.tune.orpo import ORPO
from lm.tune.ppo import PPO
from lm.tune.reward_functions import ExactAnswer, Format, RewardFunction, SoftLength
from lm.tune.simpo import SimPO
from tests.jaxprs import program_text
from tests.knobs import CHANGED_IN, CONTEXT, VISION, base, changes, samples

SEEN = "what people see of a run; lm/experiment.py lets a run be resumed with another"
WHEN = "when a run is looked at; training does not see it"
CONVERSATIONS = "tests/data/test_conversations.py::test_fields_that_are_named_are_left_unread"
LOSSES = "tests/tune/test_preference_losses.py::test_every_field_changes_the_gradient"
PREFERENCES = "tests/data/test_preferences.py::test_fields_that_are_named_are_left_unread"
STDLIB = "tests/data/test_stdlib.py::test_its_documents_are_those_of_the_split"
TFDS = "tests/data/test_records.py::test_a_tfds_data_set_is_read_without_tensorflow"
START = "tests/run/test_start.py::test_it_begins_with_the_model_s_values_and_its_tokenizer"
MESHES = "tests/test_identity.py::test_the_losses_are_those_of_one_device"
OF_A_VOCABULARY = [field.name for field in dataclasses.fields(Output) if field.name != "scores"]
# Class.field -> why nothing that is computed depends on it
INERT = {
    **{f"Experiment.{name}": SEEN for name in ("name", "prompts", "sample_tokens", "log_every_steps")},
    **dict.fromkeys(("Experiment.keep_last", "Experiment.keep_best"), "how many checkpoints stay on disk"),
    "Experiment.checkpoint_every_steps": "when checkpoints are written: a run goes on from any with the same bits",
    **dict.fromkeys(("Experiment.eval_every_steps", "Experiment.eval_tokens"), WHEN),
    "Experiment.trackers": "where metrics go besides: the steps and their bits are those of a run without it",
    "Experiment.watch": "what is noted of the model's inside: the steps and their bits are those of a run without it",
    "Compute.scoped_vmem": "what a kernel of a TPU's step may take of its vector memory: tests/train/test_program.py",
    "Compute.devices": "into how many devices a CPU is split before JAX starts; the mesh then lies over them",
    **{f"NoOutput.{name}": "it has no vocabulary: states come out as they are" for name in OF_A_VOCABULARY},
}
WATCHING = "tests/inspect/test_watching.py::"
GRPO_FIELDS = "tests/tune/test_grpo.py::test_every_field_changes_the_gradient"
ONLINE_FIELDS = "tests/tune/test_online_dpo.py::test_every_field_changes_the_gradient"
ON_POLICY = {field.name for field in dataclasses.fields(OnPolicyMethod)}
GRPO_TESTS = {  # those that a gradient does not show
    "resample": "test_dynamic_sampling_replaces_equal_groups",
    "minibatches": "test_several_updates_of_a_rollout",
    "epochs": "test_several_updates_of_a_rollout",
    "max_sampler_gap": "test_a_sampler_with_other_parameters_stops_the_run",
    "on_reward_error": "test_a_reward_that_fails_is_left_out_where_that_is_declared",
}
PPO_TESTS = {
    "scorer": "test_a_run_reads_the_reward_model_at_its_path",
    "minibatches": "test_several_updates_of_a_rollout_and_a_coefficient_after_them",
    "epochs": "test_several_updates_of_a_rollout_and_a_coefficient_after_them",
}
UNTRAINED = ("minibatches", "epochs", "max_sampler_gap", "on_reward_error")  # updates, and what all such methods do
JUDGED = "tests/run/test_extra_evals.py::test_another_method_judges_the_model_beside_its_start"
REWARDS = "tests/tune/test_reward_functions.py::"
TIMELESS = f"{REWARDS}test_one_that_takes_for_ever_is_called_once"
SUMS = "tests/data/test_sums.py::"
PROMPTS = "tests/data/test_prompts.py::test_a_batch_has_each_prompt_in_copies_with_its_record"
# Class.field -> the test that turns it, where that takes more than a look
ELSEWHERE = {
    **{
        f"{cls.__name__}.{field.name}": GRPO_FIELDS
        for cls in (OnPolicyMethod, GRPO)
        for field in dataclasses.fields(cls)
    },
    **{f"GRPO.{name}": f"tests/tune/test_grpo.py::{test}" for name, test in GRPO_TESTS.items()},
    **dict.fromkeys(("GRPO.scorer", "OnPolicyMethod.scorer"), f"tests/tune/test_ppo.py::{PPO_TESTS['scorer']}"),
    **{f"OnlineDPO.{f.name}": GRPO_FIELDS for f in dataclasses.fields(OnPolicyMethod)},
    **{f"OnlineDPO.{f.name}": ONLINE_FIELDS for f in dataclasses.fields(OnlineDPO) if f.name not in ON_POLICY},
    "GRPO.reward_seconds": TIMELESS,
    **{
        f"PPO.{f.name}": "tests/tune/test_ppo.py::test_every_field_changes_the_gradient"
        for f in dataclasses.fields(PPO)
    },
    **{f"PPO.{name}": f"tests/tune/test_ppo.py::{test}" for name, test in PPO_TESTS.items()},
    **{
        f"PPO.{name}": f"tests/tune/test_grpo.py::{GRPO_TESTS[name]}" for name in ("max_sampler_gap", "on_reward_error")
    },
    "PPO.reward_seconds": TIMELESS,
    **{
        f"{cls.__name__}.{f.name}": "tests/tune/test_ppo.py::test_the_coefficient_is_drawn_to_its_target"
        for cls in (FixedKL, AdaptiveKL)
        for f in dataclasses.fields(cls)
    },
    **{
        f"{kind.__name__}.{field.name}": LOSSES
        for kind in (DPO, KTO, ORPO, SimPO)
        for field in dataclasses.fields(kind)
    },
    **{
        f"{cls.__name__}.{field.name}": f"{REWARDS}test_exact_answers_formats_and_lengths"
        for cls in (ExactAnswer, Format, SoftLength)
        for field in dataclasses.fields(cls)
    },
    **{
        f"{cls.__name__}.weight": f"{REWARDS}test_the_total_is_weighed_and_what_has_nothing_to_say_counts_nowhere"
        for cls in (RewardFunction, ExactAnswer, Format, SoftLength)
    },
    **{f"Rollouts.{field.name}": PROMPTS for field in dataclasses.fields(Rollouts)},
    "Prompts.records": PROMPTS,
    **dict.fromkeys(("Sums.below", "Sums.heldout"), f"{SUMS}test_every_sum_is_right_and_in_one_split_in_both_orders"),
    f"{Repeats.__name__}.heldout": "tests/data/test_repeats.py::test_what_repeats_is_known_by_its_letters_alone",
    **{
        f"Watching.{field.name}": f"{WATCHING}test_every_field_changes_what_is_noted"
        for field in dataclasses.fields(Watching)
    },
    **{
        f"WandB.{field.name}": "tests/machine/test_tracking.py::test_it_gets_what_metrics_jsonl_gets"
        for field in dataclasses.fields(WandB)
    },
    "Experiment.embedding": "tests/run/test_samples.py::test_an_embedding_starts_from_a_file",
    "Experiment.evaluations": "tests/run/test_extra_evals.py::test_the_same_question_has_the_same_answer",
    "Evaluation.times": "tests/run/test_extra_evals.py::test_learned_positions_end",
    "Evaluation.objective": "tests/run/test_extra_evals.py::test_another_objective_is_told_in_its_own_measures",
    **dict.fromkeys(
        ("Evaluation.method", "Evaluation.sources"),
        "tests/run/test_extra_evals.py::test_another_method_asks_documents_of_its_own",
    ),
    "Evaluation.rows": JUDGED,
    **{
        f"CompletionEval.{field.name}": "tests/tune/test_completion_eval.py::test_every_field_changes_what_is_measured"
        for field in dataclasses.fields(CompletionEval)
    },
    "CompletionEval.scorer": JUDGED,
    **{f"CompletionEval.{name}": f"tests/tune/test_grpo.py::{GRPO_TESTS[name]}" for name in UNTRAINED},
    "CompletionEval.reward_seconds": TIMELESS,
    **dict.fromkeys(
        ("Reviews.part", "Reviews.most"), "tests/data/test_reviews.py::test_its_parts_are_of_prompts_that_are_apart"
    ),
    "Experiment.rows_per_device": "tests/plan/test_analytic.py::test_a_published_size_takes_what_devices_there_are",
    "Compute.keep": "tests/model/test_remat.py::test_names_keep_what_they_name",
    "Compute.offload": "tests/model/test_remat.py::test_offloaded_products_wait_on_the_host",
    **{f"Layout.{field.name}": MESHES for field in dataclasses.fields(Layout) if field.name != "replicated"},
    "Layout.replicated": "tests/sharding/test_sharding.py::test_a_dimension_that_does_not_divide_is_refused",
    **dict.fromkeys(("Experiment.start", "Start.path"), START),
    "Distill.cached": "tests/tune/test_distill.py::test_what_is_cached_is_what_the_teacher_says",
    "Distill.teacher": "tests/tune/test_distill.py::test_a_run_learns_from_the_teacher_at_its_path",
    **dict.fromkeys(("WholeRecords.records", "Conversations.records", "Conversations.other_fields"), CONVERSATIONS),
    **dict.fromkeys(("Preferences.records", "Preferences.other_fields"), PREFERENCES),
    **dict.fromkeys(("UnpairedPreferences.records", "UnpairedPreferences.other_fields"), PREFERENCES),
    "Data.chat_template": "tests/tune/test_sft.py::test_a_run_is_measured_replies_and_is_loaded_with_its_template",
    **dict.fromkeys(("Stdlib.part", "Stdlib.folder"), STDLIB),
    "StdlibPairs.folder": "tests/data/test_talks.py::test_an_answer_is_preferred_to_its_words_in_another_order",
    "Reward.centering": "tests/tune/test_reward.py::test_loss_gradient_and_metrics_are_trl_s",
    "StdlibTalks.folder": "tests/data/test_talks.py::test_a_talk_asks_what_it_does_and_what_it_takes",
    **VISION,
    **{f"Tfds.{field.name}": TFDS for field in dataclasses.fields(Tfds)},
}


# ---------------------------------------------------------------- what is computed from an experiment


def model_of(e: Experiment) -> Transformer:
    return Transformer(e.model, e.compute.resolve("cpu"))


@dataclass(frozen=True)
class Look:
    """What is computed from an experiment, as text, and what of the experiment it can depend on."""

    text: Callable[[Experiment], str]
    reads: Callable[[Experiment], Any]


def data_text(e: Experiment) -> str:
    data, seen = data_of(e), hashlib.sha256()
    held = [next(data.heldout(name)) for name in data.sources]
    for batch in [*(data.batch(step) for step in range(24)), *held]:
        for name in sorted(batch):
            seen.update(f"{name} {batch[name].shape}".encode() + batch[name].tobytes())
    return seen.hexdigest()


def data_reads(e: Experiment) -> Any:
    return e.data, e.length, e.rows, e.seed, e.method.objective, e.model.has_encoder


DATA: dict[str, Batches] = {}


def data_of(e: Experiment) -> Batches:
    key = value.fingerprint(data_reads(e))
    if key not in DATA:
        DATA[key] = prepare(e.data, e.length, e.rows, e.seed, e.method.objective, encoder=e.model.has_encoder)
    return DATA[key]


def batch_shapes(e: Experiment) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), data_of(e).batch(0))


def loss_text(e: Experiment) -> str:
    learner = e.build(model_of(e))
    state = jax.eval_shape(learner.init, jax.random.key(0))
    return program_text(learner.loss, *state, batch_shapes(e), jax.random.key(0))


def loss_reads(e: Experiment) -> Any:
    return e.model, e.compute, e.method, e.trains, repr(batch_shapes(e))


def init_text(e: Experiment) -> str:
    return jax.jit(model_of(e).init).lower(jax.random.key(0)).as_text()


def update_text(e: Experiment) -> str:
    """Of some parameters: of each kind, one."""
    model = model_of(e)
    shapes, axes = (kinds(tree) for tree in (model.shapes(), model.axes()))
    params, optimizer = shapes, e.optimizer.build(e.steps, axes)
    return program_text(optimizer.update, params, jax.eval_shape(optimizer.init, params), params)


def kinds(params: Any) -> Any:
    layer = params["layers"]["0"]
    hidden = {name: layer[name] for name in ("query", "key", "up", "ffn_norm_scale") if name in layer}
    return {"tokens": params["stem"]["tokens"], **hidden, **{n: x for n, x in params["head"].items() if n == "kernel"}}


def step_text(e: Experiment) -> str:
    count = int(np.prod(list(e.mesh.values()), initial=1))
    mesh = make_mesh(e.mesh or {"data": 1}, jax.devices()[:count])
    learner = e.build(model_of(e))
    optimizer = e.optimizer.build(e.steps, learner.axes())
    state, _ = state_shardings(learner, optimizer, mesh, e.ema)
    step: Any = build_step(learner, optimizer, mesh, e.seed, e.accumulate, e.ema)
    return str(step.lower(state, batch_shapes(e)).as_text())


def step_reads(e: Experiment) -> Any:
    return loss_reads(e), e.optimizer, e.steps, e.mesh, e.accumulate, e.ema


def draw_text(e: Experiment) -> str:
    counts = Counts(*jnp.zeros((2, 2, 40), jnp.int32))
    return jax.jit(e.sampling).lower(jnp.zeros((2, 40)), jax.random.key(0), counts).as_text()


LOOKS = {
    "data": Look(data_text, data_reads),
    "draw": Look(draw_text, lambda e: e.sampling),
    # where these differ, so do texts of `init`, which cost more
    "shapes": Look(lambda e: str(model_of(e).shapes()), lambda e: e.model),
    "loss": Look(loss_text, loss_reads),
    "update": Look(update_text, lambda e: (e.model, e.optimizer, e.steps)),
    "init": Look(init_text, lambda e: (e.model, e.compute)),
    "step": Look(step_text, step_reads),
}
TEXTS: dict[tuple[str, str], str] = {}


def differ(a: Experiment, b: Experiment) -> str:
    """The first of LOOKS at which the experiments differ; nothing, where they are alike to all."""
    for name, look in LOOKS.items():
        keys = [value.fingerprint(look.reads(e)) for e in (a, b)]
        if keys[0] == keys[1]:
            continue
        for e, key in zip((a, b), keys, strict=True):
            if (name, key) not in TEXTS:
                TEXTS[name, key] = hashlib.sha256(look.text(e).encode()).hexdigest()
        if TEXTS[name, keys[0]] != TEXTS[name, keys[1]]:
            return name
    return ""


# ---------------------------------------------------------------- every field of every class


def inside(kind: Any) -> Iterator[tuple[type, tuple[Any, ...]]]:
    """The dataclasses that an annotation names, and where they stand in its value."""
    if dataclasses.is_dataclass(kind):
        yield typing.cast(type, kind), ()
    origin, within = typing.get_origin(kind), typing.get_args(kind)
    container = origin is tuple or (isinstance(origin, type) and issubclass(origin, Mapping))
    place = () if not container else (0,) if origin is tuple else ("some",)
    for one in within:
        yield from ((cls, (*place, *path)) for cls, path in inside(one))


def seats() -> dict[type, tuple[type, tuple[Any, ...]]]:
    """Every class of ours that an experiment may hold, the class it is first found in (an extra evaluation's sources
    are those of the mixture), and its place there."""
    found: dict[type, tuple[type, tuple[Any, ...]]] = {Experiment: (Experiment, ())}
    order, last = [Experiment], list[type]()
    for cls in chain(order, last):  # which grow
        for field in dataclasses.fields(cls):
            for kind, path in inside(value._hints(cls)[field.name]):
                for sub in value.subclasses(kind).values():
                    ours = sub.__module__.startswith("lm.") and not sub.__name__.startswith("_")
                    if ours and sub not in found:
                        found[sub] = (cls, (field.name, *path))
                        (last if Evaluation in (cls, sub) else order).append(sub)
    return found


SEATS = seats()


def at(whole: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        whole = whole[name] if isinstance(whole, Mapping | tuple) else getattr(whole, name)
    return whole


def put(whole: Any, path: tuple[Any, ...], new: Any) -> Any:
    """`whole` with `new` at `path`."""
    if not path:
        return new
    name, *rest = path
    inner = put(at(whole, (name,)), tuple(rest), new)
    if isinstance(whole, tuple):
        return (*whole[:name], inner, *whole[name + 1 :])
    return {**whole, name: inner} if isinstance(whole, Mapping) else replace(whole, **{name: inner})


def seat(cls: type) -> tuple[Experiment, tuple[Any, ...]]:
    """An experiment that holds a value of `cls`, and where."""
    if cls is Experiment:
        return base(), ()
    parent, place = SEATS.get(cls) or SEATS[cls.__mro__[1]]
    host, path = seat(parent)
    host = host.replace(CONTEXT.get(cls.__name__, {}))
    path = (*path, *place)
    return put(host, path, sample(cls, host, path)), path


def sample(cls: type, host: Experiment, path: tuple[Any, ...]) -> Any:
    """A value of `cls`: one that is declared, that which is there already, or its defaults."""
    known = (samples().get(cls.__name__), at(host, path))
    return next((one for one in known if type(one) is cls), None) or cls()


def changed(cls: type, name: str, host: Experiment, old: Any) -> Any:
    """Another value for the field `name` of `cls`."""
    for one in cls.__mro__:
        if f"{one.__name__}.{name}" in changes():
            return changes()[f"{one.__name__}.{name}"]
    for kind, path in inside(value._hints(cls)[name]):
        others = [sub for sub in value.subclasses(kind).values() if type(old) is not sub and not path]
        return next(samples().get(sub.__name__) or sub() for sub in others if sub.__module__.startswith("lm."))
    if isinstance(old, bool):
        return not old
    assert isinstance(old, int | float), f"say in `changes` what {cls.__name__}.{name} = {old!r} is to be changed to"
    return old + 1 if isinstance(old, int) else 0.9 * old or 0.25


def dead(cls: type) -> list[str]:
    """The fields of `cls` that change nothing."""
    return [name for name in names(cls) if not turns(cls, name)]


def names(cls: type) -> list[str]:
    """Its fields, but for those whose class has no other: they are walked themselves."""
    found = []
    for field in dataclasses.fields(cls):
        kinds = [kind for kind, path in inside(value._hints(cls)[field.name]) if not path]
        alone = kinds and len(value.subclasses(kinds[0])) == 1
        optional = type(None) in typing.get_args(value._hints(cls)[field.name])
        if (not alone or optional) and f"{cls.__name__}.{field.name}" not in ELSEWHERE:
            found.append(field.name)
    return found


def turns(cls: type, name: str) -> str:
    host, path = seat(cls)
    if context := CHANGED_IN.get(f"{cls.__name__}.{name}"):
        host = host.replace(context)
    old = at(host, (*path, name))
    return differ(host, put(host, (*path, name), changed(cls, name, host, old)))


WALKED = [cls for cls in SEATS if dataclasses.fields(cls) and cls not in (NoOutput, Classifier, Tfds, Stdlib)]


@pytest.mark.parametrize("cls", WALKED, ids=lambda cls: cls.__name__)
def test_every_field_turns_something_or_says_why_not(cls: type) -> None:
    declared = [name for name in names(cls) if f"{cls.__name__}.{name}" in INERT]
    assert dead(cls) == declared, "a field that turns nothing is a bug, or stands in INERT with the reason"


def test_what_is_declared_is_there() -> None:
    """Each declared field exists, and each test that stands for one."""
    known = {f"{cls.__name__}.{field.name}" for cls in SEATS for field in dataclasses.fields(cls)}
    assert {*INERT, *ELSEWHERE} <= known and all(INERT.values())
    for test in ELSEWHERE.values():
        path, _, name = test.partition("::")
        assert f"def {name}(" in (Path(__file__).parent.parent / path).read_text()
    told = {name for name in INERT if name.startswith("Experiment.")}
    assert {f"Experiment.{name}" for name in experiment.INERT - {"sampling"}} <= told


def test_what_is_walked_is_all_that_an_experiment_holds() -> None:
    walked = {cls.__name__ for cls in SEATS}
    assert {"Experiment", "Experts", "YaRN", "NoOutput", "Muon", "WSD", "Breakpoint", "UL2", "MuP"} <= walked
    assert len(WALKED) > 40


@dataclass(frozen=True)
class Idle(RMSNorm):
    """A norm with one knob that nothing reads, one that is read to no effect, and one that works."""

    unread: float = 0.1
    wasted: float = 0.1
    works: float = 0.1

    def __call__(self, module: Any, name: str, x: jax.Array) -> jax.Array:
        _ = jnp.tanh(x * self.wasted)
        return super().__call__(module, name, x) * self.works


def test_a_knob_that_turns_nothing_is_found() -> None:
    assert dead(Idle) == ["unread", "wasted"]
