"""The conformance kit: what every selector promises, tried on a small pool with real columns.

Each promise is a function that raises `Broken`, with a sentence that says what is wrong and how to mend it.
"""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np

from harness.conformance_world import Trial, World
from harness.docstrings import field_docs
from harness.errors import HarnessError
from harness.keys import canonical
from harness.registry import Plugin, register_file, selector, selector_spec
from harness.types import Budget, Json

SAMPLES: Final = 400
SEEDS: Final = (0, 3)


class Broken(Exception):
    """A promise that is not kept: what is wrong, and how to mend it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One promise and what became of it."""

    promise: str
    problem: str = ""
    """Empty where the promise is kept."""


def check_selector(
    chosen: str, folder: Path, config: Mapping[str, Json] | None = None, samples: int = SAMPLES
) -> Iterator[Verdict]:
    """Try every promise on the selector of a name, or in a .py file; `folder` is scratch space.

    What can be seen without running it comes first. A selector that does not run at all is asked nothing more.
    Raises HarnessError for an unknown selector or setting, and for a model or pass that is not here.
    """
    name = register_file(Path(chosen)) if chosen.endswith(".py") else chosen
    plugin = selector(name)
    for promise, static in STATIC.items():
        yield _tried(promise, static, plugin)
    try:
        spec = selector_spec(name, config or {})
    except TypeError as e:  # a setting without a default
        yield Verdict(promise="it runs", problem=f"its settings cannot be made: {e}.")
        return
    world = World.make(folder, spec, samples)
    runs = _tried("it runs", runs_at_all, world)
    yield runs
    if runs.problem:
        return
    for promise, behaviour in BEHAVIOUR.items():
        yield _tried(promise, behaviour, world)


def _tried(promise: str, check: Callable[[Any], None], subject: Any) -> Verdict:
    try:
        check(subject)
    except Broken as e:
        return Verdict(promise=promise, problem=str(e))
    except HarnessError:
        raise
    except Exception as e:  # whatever a selector raises is its answer
        last = traceback.extract_tb(e.__traceback__)[-1]
        said = f"{type(e).__name__}: {e} ({Path(last.filename).name}:{last.lineno})"
        return Verdict(promise=promise, problem=f"it raised {said}.")
    return Verdict(promise=promise)


def loads_without_torch(plugin: Plugin) -> None:
    """Every command imports every selector: a second each would be felt."""
    load = f"register_file(Path({plugin.path!r}))" if plugin.path else f"selector({plugin.name!r})"
    code = (
        "import sys; from pathlib import Path; from harness.registry import register_file, selector; "
        f"{load}; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if done.stdout.split()[-1:] == ["True"]:
        raise Broken("importing its module imports torch: import torch inside the functions that use it.")


def says_what_it_is(plugin: Plugin) -> None:
    """Name, version, and what it does."""
    cls = plugin.cls
    if cls.name != plugin.name:
        raise Broken(f"it is installed as '{plugin.name}' and its `name` is '{cls.name}': make them the same.")
    if not (isinstance(cls.version, int) and cls.version >= 1):
        raise Broken(f"`version` is {cls.version!r}: make it 1, and raise it whenever its choices change.")
    if not cls.__doc__:
        raise Broken(f"class {cls.__name__} has no docstring: say in one sentence what it keeps.")


def documents_its_settings(plugin: Plugin) -> None:
    """The Config is what users see of a selector."""
    config = plugin.cls.Config
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise Broken("`Config` is not a dataclass: write one with a default for every setting.")
    without = [f.name for f in dataclasses.fields(config) if not _has_default(f)]
    if without:
        raise Broken(f"setting {', '.join(without)} has no default: give it one.")
    try:
        canonical(config())
    except (TypeError, ValueError) as e:
        raise Broken(f"a default is no plain value ({e}): use numbers, strings, booleans and lists.") from None
    if (config.__doc__ or "").startswith(f"{config.__name__}("):
        raise Broken(f"{config.__name__} has no docstring: say in one sentence what its settings are about.")
    docs = field_docs(config)
    bare = [f.name for f in dataclasses.fields(config) if f.name not in docs]
    if bare:
        raise Broken(f"setting {', '.join(bare)} is not explained: put a string under its line.")


def _has_default(f: dataclasses.Field[Any]) -> bool:
    return f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING


def sizes(world: World) -> list[int]:
    """Budgets to try on the pool: the smallest, the largest, and some that divide nothing."""
    n = world.pool.n
    return [n] if world.spec.name == "full" else sorted({1, 7, n // 10, n // 2 + 1, n - 1, n})


def runs_at_all(world: World) -> None:
    """One budget, one seed."""
    world.trial().select(sizes(world)[-1], SEEDS[0])


def keeps_the_budget(world: World) -> None:
    """Exactly n, whatever n is."""
    trial = world.trial()
    for n in sizes(world):
        _exact(trial, n, SEEDS[0])


def _exact(trial: Trial, n: int, seed: int) -> None:
    kept = len(np.asarray(trial.select(n, seed).positions))
    if kept != n:
        mend = "return positions[:n]" if kept > n else "fill up by the method's own score, NaN last"
        raise Broken(f"of {trial.pool.n} samples and n={n} it kept {kept}: {mend}.")


def keeps_valid_positions(world: World) -> None:
    """Whole numbers within the pool, each once."""
    trial = world.trial()
    for n in sizes(world):
        _valid(trial, n, SEEDS[0])


def _valid(trial: Trial, n: int, seed: int) -> None:
    positions = np.asarray(trial.select(n, seed).positions)
    if positions.ndim != 1 or positions.dtype.kind not in "iu":
        raise Broken(
            f"positions are {positions.dtype} of shape {positions.shape}: return one array of whole numbers, for "
            "example numpy.flatnonzero of a mask."
        )
    if len(positions) and not 0 <= positions.min() <= positions.max() < trial.pool.n:
        raise Broken(
            f"positions run from {positions.min()} to {positions.max()}: those of {trial.pool.n} samples "
            f"count from 0 to {trial.pool.n - 1}."
        )
    twice = len(positions) - len(np.unique(positions))
    if twice:
        raise Broken(f"at n={n} {twice} of its positions come up again: keep each sample once.")


def repeats_itself(world: World) -> None:
    """The same seed: here twice, asked in another order, and in another process."""
    asked = [(n, seed) for n in sizes(world) for seed in SEEDS]
    first, second = world.trial(), world.trial()
    kept = {case: first.kept(*case) for case in asked}
    for case in reversed(asked):
        if second.kept(*case) != kept[case]:
            raise Broken(
                f"n={case[0]}, seed={case[1]} gave two results: derive all chance from the seed "
                "(harness.keys.mix64 of uid_hash64), not from a global generator, a clock or earlier calls."
            )
    case = asked[len(asked) // 2]
    if world.elsewhere(*case) != kept[case]:
        raise Broken(
            "another process gave another result: hash() of a string, and with it the order of a set, is another "
            "in every process; sort, or use harness.keys.uid_hash64."
        )


def ignores_the_order_of_the_pool(world: World) -> None:
    """The same samples in another order: the same choice."""
    shuffled = np.random.default_rng(0).permutation(world.pool.n).tolist()
    straight, other = world.trial(), world.trial(shuffled)
    for n in sizes(world):
        for seed in SEEDS:
            changed = set(straight.kept(n, seed)) - set(other.kept(n, seed))
            if changed:
                raise Broken(
                    f"at n={n} {len(changed)} choices changed when the pool was shuffled: rank with "
                    "harness.api.ranked, which breaks ties by the uid, and never by position."
                )


def is_nested_if_it_says_so(world: World) -> None:
    """A smaller budget is part of a larger one."""
    trial = world.trial()
    if not trial.selector.nested or trial.selector.name == "full":
        return
    for seed in SEEDS:
        smaller: set[str] = set()
        for n in sizes(world):
            larger = set(trial.kept(n, seed))
            if not smaller <= larger:
                raise Broken(
                    f"{len(smaller - larger)} samples of the next smaller budget are missing at n={n}: set "
                    "`nested = False`, or take the first n of one order."
                )
            smaller = larger


def keeps_any_budget_of_any_pool(world: World, trials: int = 5) -> None:
    """Random (N, r): exactly floor(r * N) of a random part of the pool."""
    rng = Random(0)
    for _ in range(trials):
        part = rng.sample(range(world.pool.n), rng.randint(20, world.pool.n))
        trial = world.trial(part)
        share = Budget.parse("1" if world.spec.name == "full" else f"{rng.randint(50, 999)}/1000")
        n = share.size(len(part))
        _exact(trial, n, SEEDS[0])
        _valid(trial, n, SEEDS[0])


STATIC: Final[Mapping[str, Callable[[Plugin], None]]] = {
    "importing it does not import torch": loads_without_torch,
    "it says what it is": says_what_it_is,
    "its settings are documented": documents_its_settings,
}
"""Promises that show without running the selector."""

BEHAVIOUR: Final[Mapping[str, Callable[[World], None]]] = {
    "the budget is kept exactly": keeps_the_budget,
    "positions are valid and different": keeps_valid_positions,
    "the same seed gives the same result": repeats_itself,
    "the order of the pool does not matter": ignores_the_order_of_the_pool,
    "budgets are nested if it says so": is_nested_if_it_says_so,
    "any share of any pool is kept exactly": keeps_any_budget_of_any_pool,
}
"""Promises that show in what it keeps."""


def settings_of(arguments: Sequence[str]) -> dict[str, Json]:
    """Settings given as KEY=VALUE; a value that reads as a Python literal is one, anything else is text.

    Raises HarnessError for an argument without an equals sign.
    """
    settings: dict[str, Json] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise HarnessError(f"'{argument}' is no setting: write KEY=VALUE.")
        try:
            settings[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[key] = value
    return settings
