"""Models of one's own on UCI HAR: 30 people, few windows each, held out by time.

    python experiments/personal_har.py --data-dir FOLDER            # minutes on two cores
    python experiments/personal_har.py --data-dir FOLDER --smoke    # seconds, one seed
    python experiments/personal_har.py --num-windows 60 --models softmax

Each person is a client with 20, 60 or all of its training windows of smartphone signals; 54
statistics of a window are told apart by softmax regression, or by a perceptron of 32 hidden units.
Windows overlap by half, so the test is the last quarter of every activity of a person, with a
window of gap (`experiments/shared/har.py`). Every method has 150 rounds of five local steps,
all people in each, batches of 20; servers have momentum 0.9, and pooled training, with as many
examples a round, too. Settings (rates, pulls, mixtures, weight decay
of the two baselines) are chosen for each method, model and number of windows by the mean of two
accuracies on validation windows: over people, and over the worst tenth of them. Validation is
blocked in time: what the test leaves of each activity is cut into three blocks, each is scored in
turn and training windows are drawn from the others, a window apart. Then seeds draw training
windows of all that the test leaves, parameters and batches. The models, the grids, momentum, the
length of the runs and the manner of validation were settled in trials whose test figures were
seen; nothing else was.

Statistics are standardised by mean and deviation over everybody's training windows, which a
federation gets by one sum. Accuracies are means over people of their own held-out windows, and
over the three with the lowest; intervals are Student's at 95 % over seeds, those of differences
over people (each the mean of its seeds). With privacy every person is hidden (epsilon 8, delta
1e-3, all windows; add or remove one) in what the server learns; what a person keeps is not
noised. The clip is one more setting; choosing it and the standardisation cost privacy that is not
counted.

Writes results.json and people.png and prints the table.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from personal_har_methods import ALONE, GLOBAL, NUM_PEOPLE, POOLED, Method, methods
from shared.har import FOLDS, NUM_ACTIVITIES, Windows, load
from shared.script import script
from shared.smoke import shrunk

import fedjax_lite as fl
from fedjax_lite.evaluate import models_of
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

EPSILON, DELTA, PRIVATE_WINDOWS = 8.0, 1e-3, 60
FIGURES = ("mean", "worst")


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """What is compared."""

    num_windows: tuple[int, ...] = (20, 60, 0)
    """Training windows a person; 0: all that the test leaves."""
    models: tuple[Literal["softmax", "mlp"], ...] = ("softmax", "mlp")
    """softmax: regression on the statistics; mlp: one layer of 32 hidden units."""
    methods: tuple[str, ...] = ()
    """Some of the methods, as the table names them, beside the baselines; none given: all."""
    no_privacy: bool = False
    """Leave out what hiding every person costs at 60 windows."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Local training and rounds."""

    num_rounds: int = 150
    """Rounds of each run, all people in each."""
    batch_size: int = 20
    """Examples in a local step."""
    steps: int = 5
    """Local steps of a person in a round."""
    tune_steps: int = 100
    """Steps on its own windows with which a person tunes a global model."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Data, seeds, and where results go."""

    data_dir: Path | None = None
    """Folder that holds UCI HAR (else FEDJAX_LITE_DATA, the cache)."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the drawn windows, the parameters and batches."""
    output_dir: Path = Path("outputs/personal_har")
    """Where results.json and people.png go."""
    overwrite: bool = False
    """Run everything again; else what results.json has is kept and only added to."""
    smoke: bool = False
    """Two methods, few rounds, one seed, in seconds."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, TrainingFlags, RunFlags):
    """What is compared, how it trains, and where it goes."""


def population(windows: Windows, rows: np.ndarray, scale: Any) -> fl.data.FederatedDataset:
    """The people's windows among `rows`; all such populations have one shape, so one program."""
    mean, deviation = scale
    rows = rows[np.argsort(windows.subject[rows], kind="stable")]
    offsets = np.searchsorted(windows.subject[rows], np.arange(NUM_PEOPLE + 1))
    order = np.concatenate([rows, np.setdiff1d(np.arange(len(windows.y)), rows)])
    x = ((windows.x - mean) / deviation).astype(np.float32)
    return fl.data.FederatedDataset(
        {"x": jnp.asarray(x), "y": jnp.asarray(windows.y)},
        jnp.asarray(offsets, jnp.int32),
        order=jnp.asarray(order, jnp.int32),
        max_client_size=int(np.bincount(windows.subject).max()),
    )


def draw(windows: Windows, pool: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Each person's training windows at random from the pool; 0: all."""
    rng = np.random.default_rng(seed)
    people = [np.flatnonzero(pool & (windows.subject == p)) for p in range(NUM_PEOPLE)]
    return np.concatenate([rng.permutation(rows)[: number or None] for rows in people if len(rows)])


class Parts(NamedTuple):
    """A population to train on and one to score."""

    seed: int
    train: fl.data.FederatedDataset
    scored: fl.data.FederatedDataset


def parts_of(
    windows: Windows, pool: np.ndarray, scored: np.ndarray, number: int, seed: int
) -> Parts:
    """Windows drawn from a pool for a seed, and others, standardised alike."""
    rows = draw(windows, pool, number, seed)
    scale = windows.x[rows].mean(0), windows.x[rows].std(0)
    held_out = population(windows, np.flatnonzero(scored), scale)
    return Parts(seed, population(windows, rows, scale), held_out)


def trainer(
    model: fl.models.Model, method: Method, num_rounds: int
) -> Callable[[dict[str, float], int, Any], Any]:
    """``(settings, seed, data) -> every person's model``, one program for all of these."""

    @jax.jit
    def train(settings: Any, key: Any, data: Any) -> Any:
        algo, after = method.make(**settings)
        state = algo.init(key, model.init(key), data)
        one = lambda s, _: (algo.round(key, s, data)[0], None)  # noqa: E731
        state, _ = jax.lax.scan(one, state, length=num_rounds)
        if after is not None:
            state = after.init(key, state.server.params, data)
            state, _ = after.round(key, state, data)
        return models_of(state, np.arange(NUM_PEOPLE))

    def call(settings: dict[str, float], seed: int, data: Any) -> Any:
        method.make(**settings)  # the checks of factories see plain numbers
        traced = {name: jnp.float32(value) for name, value in settings.items()}
        return train(traced, jax.random.key(seed), data)

    return call


def figures(accuracy: np.ndarray) -> dict[str, float]:
    """Mean over people, and over the worst tenth of them."""
    summary = fl.summarize_clients(accuracy, np.ones(len(accuracy)))
    return {name: summary[name] for name in FIGURES}


def run_method(
    model: fl.models.Model,
    train: Callable[..., Any],
    points: list[dict[str, float]],
    folds: list[Parts],
    tests: list[Parts],
) -> dict[str, Any]:
    """Chooses settings on the validation windows, then trains and tests every seed."""

    def score(settings: dict[str, float], parts: Parts) -> np.ndarray:
        models = train(settings, parts.seed, parts.train)
        return fl.evaluate_personal(model, models, parts.scored)["accuracy"]

    # Where a model diverged nobody is right, and nobody is left out.
    tried = [
        figures(np.mean([np.nan_to_num(score(point, parts)) for parts in folds], axis=0))
        for point in points
    ]
    best = max(range(len(points)), key=lambda i: sum(tried[i].values()))
    accuracy = [score(points[best], parts) for parts in tests]
    return {
        "settings": points[best],
        "validation": tried[best],
        "accuracy": np.round(np.mean(accuracy, axis=0), 5).tolist(),
        **{f"{name}s": [figures(one)[name] for one in accuracy] for name in FIGURES},
    }


def private(num_rounds: int) -> Callable[[Any], fl.Mechanism]:
    """``(clip) -> mechanism`` that hides every person in the run."""
    settings: dict[str, Any] = {
        "num_clients": NUM_PEOPLE, "sampling_rate": 1.0, "delta": DELTA, "num_rounds": num_rounds
    }  # fmt: skip
    noise = fl.privacy.calibrate([EPSILON], fl.privacy.central_gaussian, clip=1.0, **settings)[0]
    return lambda clip: fl.privacy.central_gaussian(clip=clip, noise_multiplier=noise, **settings)


def jobs(flags: Flags) -> list[tuple[str, int, bool]]:
    """Models, numbers of windows, and whether people are hidden."""
    found = [(name, number, False) for name in flags.models for number in flags.num_windows]
    if PRIVATE_WINDOWS in flags.num_windows and not flags.no_privacy:
        found += [(name, PRIVATE_WINDOWS, True) for name in flags.models]
    return found


def main(flags: Flags) -> list[dict[str, Any]]:
    """Runs what is missing, prints the table and returns its rows."""
    if flags.smoke:
        flags = shrunk(
            flags, num_windows=(20,), models=("softmax",), methods=("Ditto",), num_rounds=10,
            seeds=(0,), no_privacy=True,
        )  # fmt: skip
    if not flags.seeds:
        raise ValueError("--seeds must be one or more, got none")
    path = flags.output_dir / "results.json"
    kept = ("num_rounds", "batch_size", "steps", "tune_steps", "seeds")
    settings = json.loads(json.dumps({name: getattr(flags, name) for name in kept}))
    rows = [] if flags.overwrite else earlier(path, settings)
    windows = load(flags.data_dir)
    trainers: dict[tuple[str, bool, str], Callable[..., Any]] = {}
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    for name, number, hidden in jobs(flags):
        shape: dict[str, Any] = {"input_shape": (windows.x.shape[1],)}
        shape["num_classes"] = NUM_ACTIVITIES
        model = fl.models.mlp((32,), **shape) if name == "mlp" else fl.models.linear(**shape)
        work: dict[str, Any] = {k: getattr(flags, k) for k in ("batch_size", "steps", "tune_steps")}
        every = methods(model, privacy=private(flags.num_rounds) if hidden else None, **work)
        known = {m: one for m, one in every.items() if name == "mlp" or not one.has_head}
        names = methods(model, **work)
        if unknown := set(flags.methods) - set(names):
            raise ValueError(f"--methods must be among {list(names)}, got {sorted(unknown)}")
        wanted = {*flags.methods, POOLED, ALONE, GLOBAL} if flags.methods else set(known)
        folds = [parts_of(windows, *windows.fold(k), number, k) for k in range(FOLDS)]
        pool = windows.block >= 0
        tests = [parts_of(windows, pool, windows.test, number, seed) for seed in flags.seeds]
        for method in (m for m in known if m in wanted):
            place = {"model": name, "num_windows": number, "private": hidden, "method": method}
            if any(place.items() <= row.items() for row in rows):
                continue
            began = time.perf_counter()
            key = name, hidden, method
            if key not in trainers:  # a program for all numbers of windows
                trainers[key] = trainer(model, known[method], flags.num_rounds)
            points = known[method].points()
            row = {**place, **run_method(model, trainers[key], points, folds, tests)}
            rows.append({**row, "seconds": round(time.perf_counter() - began, 1)})
            means = [float(np.mean(row[f"{which}s"])) for which in FIGURES]
            print(*place.values(), row["settings"], np.round(means, 4).tolist(), flush=True)
            save_json_atomic(path, {"versions": versions(), "settings": settings, "rows": rows})
    rows = [{**row, **intervals(row, rows)} for row in rows]
    save_json_atomic(path, {"versions": versions(), "settings": settings, "rows": rows})
    print(table(rows))
    draw_people(rows, flags.output_dir / "people.png")
    return rows


def earlier(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier run with the same settings; raises where they differ."""
    if not path.exists():
        return []
    saved = json.loads(path.read_text())
    if differ := [k for k, v in settings.items() if saved["settings"].get(k) != v]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in differ)
        raise FileExistsError(
            f"{path} holds runs with other settings ({names}); --overwrite replaces them, or give "
            "another --output-dir"
        )
    return saved["rows"]


def by_person(row: dict[str, Any]) -> np.ndarray:
    """Each person's accuracy, the mean of its seeds."""
    return np.asarray(row["accuracy"], float)


def interval(values: Any) -> list[float | None]:
    """The mean and half of its interval, None of a single value."""
    mean, half, count = fl.report.t_interval(values)
    return [mean, half if count > 1 else None]


def intervals(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and paired differences by person to the two baselines of the same model
    and windows, with the share of the people who are better off.
    """
    found: dict[str, Any] = {name: interval(row[f"{name}s"]) for name in FIGURES}
    for name, baseline in (("pooled", POOLED), ("alone", ALONE)):
        for other in rows:
            same = all(other[key] == row[key] for key in ("model", "num_windows"))
            if same and other["method"] == baseline and not other["private"]:
                change = by_person(row) - by_person(other)
                found[f"over_{name}"] = [*interval(change), float((change > 0).mean())]
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracies in per cent with intervals over seeds, differences in points over people."""
    lines = []
    for model, number, hidden in dict.fromkeys(
        (row["model"], row["num_windows"], row["private"]) for row in rows
    ):
        mine = [row for row in rows if (row["model"], row["num_windows"], row["private"])
                == (model, number, hidden)]  # fmt: skip
        hiding = f", every person hidden (epsilon {EPSILON:g})" if hidden else ""
        lines += ["", f"{model}, {number or 'all'} windows a person{hiding}"]
        lines += [
            f"{'':15s} {'people':>13s} {'worst tenth':>13s} {'to pooled':>13s} {'to alone':>13s}"
        ]
        for row in mine:
            cells = []
            for name in (*FIGURES, "over_pooled", "over_alone"):
                mean, half = row[name][:2]
                sign = "+" if name.startswith("over") else ""
                spread = "" if half is None else f" ± {100 * half:.1f}"
                cells.append(f"{100 * mean:{sign}.1f}{spread}")
            lines.append(f"{row['method']:15s} " + " ".join(f"{cell:>13s}" for cell in cells))
    return "\n".join(lines)


def draw_people(rows: list[dict[str, Any]], path: Path) -> None:
    """Every person under each method against alone, where there are 60 windows or the first."""
    open_rows = [row for row in rows if not row["private"]]
    number = PRIVATE_WINDOWS if any(row["num_windows"] == PRIVATE_WINDOWS for row in rows) else None
    model = open_rows[0]["model"]
    mine = [row for row in open_rows if row["model"] == model
            and row["num_windows"] == (number or open_rows[0]["num_windows"])]  # fmt: skip
    scores = {
        row["method"]: {
            "scores": by_person(row),
            **{name: float(np.mean(row[f"{name}s"])) for name in FIGURES},
        }
        for row in mine
    }
    windows = mine[0]["num_windows"] or "all"
    fl.report.plot_side_by_side(
        scores, dataset=f"UCI HAR, {model}, {windows} training windows a person", against=ALONE,
        split="last quarter in time", title="Models of one's own", path=path,
    )  # fmt: skip


if __name__ == "__main__":
    script(main, Flags, __doc__)
