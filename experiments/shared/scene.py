"""A scene: a claim, what was measured, and the verdict; as a table, a file and a figure."""

from __future__ import annotations

import dataclasses
import functools
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions
from fedjax_lite.types import RoundState

HOLDS, FAILS = "holds", "does not hold"
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""That eyes of all kinds tell apart."""


@dataclasses.dataclass(frozen=True)
class SceneFlags:
    """Seeds, data, and where the results go."""

    num_seeds: int = 5
    """Number of seeds, 0, 1 and so on, of data and models; figures are means over them."""
    data_dir: Path | None = None
    """Folder of the real data, where the scene has some (else FEDJAX_LITE_DATA, the cache)."""
    output_dir: Path | None = None
    """Where results.json and figure.png go; by default outputs/scenes/ and the scene's name."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    smoke: bool = False
    """A try in seconds: one seed, fewer rounds."""


class Part(NamedTuple):
    """One statement of a claim, and whether the figures bear it out."""

    statement: str
    holds: bool


class Found(NamedTuple):
    """What a scene measured."""

    columns: tuple[str, ...]
    """What the figures of a row are."""
    rows: dict[str, np.ndarray]
    """By method, `[S, columns]`: of every seed."""
    parts: list[Part]
    """The claim, statement by statement."""
    label: str
    """What all columns measure, for the figure's axis."""

    @property
    def means(self) -> dict[str, np.ndarray]:
        """Over the seeds, `[columns]`."""
        return {name: values.mean(0) for name, values in self.rows.items()}

    @property
    def verdict(self) -> str:
        """Of the claim as a whole."""
        return HOLDS if all(part.holds for part in self.parts) else FAILS


def tell(
    name: str, claim: str, measure: Callable[[SceneFlags], Found], flags: SceneFlags
) -> dict[str, Any]:
    """Measures, prints the table with the verdict, writes results.json and figure.png.

    Args:
      name: of the scene, and of its folder.
      claim: what is said to be so.
      measure: does the work.
      flags: of the command line.

    Returns:
      What is in results.json.

    Raises:
      ValueError: if `num_seeds` is below 1.
      FileExistsError: if results of an earlier run would be lost.
    """
    if flags.num_seeds < 1:
        raise ValueError(f"--num-seeds must be at least 1, got {flags.num_seeds}")
    folder = flags.output_dir or Path("outputs/scenes") / name
    path = folder / "results.json"
    if path.exists() and not flags.overwrite:
        raise FileExistsError(
            f"{path} holds the results of an earlier run; --overwrite replaces them, or give "
            "another --output-dir"
        )
    found = measure(flags)
    record = {
        "scene": name,
        "claim": claim,
        "verdict": found.verdict,
        "parts": [part._asdict() for part in found.parts],
        "columns": found.columns,
        "means": {row: means.round(5).tolist() for row, means in found.means.items()},
        "by_seed": {row: values.round(5).tolist() for row, values in found.rows.items()},
        "settings": {"num_seeds": len(next(iter(found.rows.values()))), "smoke": flags.smoke},
        "versions": versions(),
    }
    print(f"Claim: {claim}\n\n{table(found)}\n")
    for part in found.parts:
        print(f"  {HOLDS if part.holds else FAILS:14s} {part.statement}")
    print(f"\nVerdict: {found.verdict}.")
    folder.mkdir(parents=True, exist_ok=True)
    save_json_atomic(path, record)
    draw(name, found, folder / "figure.png")
    return record


def seeds_of(flags: SceneFlags) -> range:
    """The seeds to run."""
    return range(1 if flags.smoke else flags.num_seeds)


def table(found: Found) -> str:
    """Rows of means, with the standard deviation over seeds where there are several."""
    widths = [max(17, len(column) + 2) for column in found.columns]
    head = zip(found.columns, widths, strict=True)
    lines = [f"{found.label[:24]:24s}" + "".join(f"{c:>{w}s}" for c, w in head)]
    for name, values in found.rows.items():
        cells = []
        for mean, spread in zip(values.mean(0), values.std(0), strict=True):
            cells.append(f"{mean:.3f} +- {spread:.3f}" if len(values) > 1 else f"{mean:.3f}")
        cells = [f"{cell:>{w}s}" for cell, w in zip(cells, widths, strict=True)]
        lines.append(f"{name:24s}" + "".join(cells))
    return "\n".join(lines)


def draw(name: str, found: Found, path: Path) -> None:
    """Bars with their values: a group a column, a bar a method; below them what holds."""
    from matplotlib.figure import Figure

    count, many = len(found.rows), len(found.columns)
    wide = max(7.5, 0.42 * many * (count + 1) + 2.5)
    told = [f"{HOLDS if part.holds else FAILS}: {part.statement}" for part in found.parts]
    lines = [line for one in told for line in textwrap.wrap(one, int(14 * wide))]
    figure = Figure(figsize=(wide, 3.6 + 0.16 * len(lines)), layout="constrained")
    axes = figure.subplots()
    place, width = np.arange(many), 0.8 / count
    several = len(next(iter(found.rows.values()))) > 1
    for i, (row, values) in enumerate(found.rows.items()):
        at = place + (i - (count - 1) / 2) * width
        bars = axes.bar(
            at, values.mean(0), width, yerr=values.std(0) if several else None, label=row,
            color=COLOURS[i % len(COLOURS)], error_kw={"lw": 0.8},
        )  # fmt: skip
        axes.bar_label(bars, fmt="{:.3f}", fontsize=7, rotation=90, padding=3)
    axes.set_xticks(place, found.columns)
    axes.set_ylabel(found.label)
    axes.margins(y=0.16)
    axes.spines[["top", "right"]].set_visible(False)
    seeds = f"; means, deviations over {len(values)} seeds" if several else "; one seed"
    axes.set_title(f"{name.replace('_', ' ')}: {found.verdict}{seeds}", fontsize=10)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figure.supxlabel("\n".join(lines), fontsize=7.5, x=0.02, ha="left")
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


class Gain(NamedTuple):
    """What one row has more than another, seed by seed."""

    mean: float
    error: float
    """The standard error of the mean; NaN of one seed."""

    @property
    def sure(self) -> bool:
        """More than two standard errors above 0; of one seed: above 0."""
        return bool(self.mean > (0 if np.isnan(self.error) else 2 * self.error))

    def told(self, factor: float = 1.0, digits: int = 3) -> str:
        """The gain and its error, such as ``+1.2 +- 0.3``."""
        error = "" if np.isnan(self.error) else f" +- {factor * self.error:.{digits}f}"
        return f"{factor * self.mean:+.{digits}f}{error}"


def gain(more: Any, less: Any) -> Gain:
    """Of paired figures `[S]`, those of the same seeds: the mean difference and its error.

    Example:
      >>> gain([3.0, 5.0], [1.0, 1.0])
      Gain(mean=3.0, error=1.0)
      >>> gain([3.0, 5.0], [1.0, 1.0]).sure
      True
    """
    apart = np.subtract(more, less)
    error = apart.std(ddof=1) / np.sqrt(len(apart)) if len(apart) > 1 else np.nan
    return Gain(float(apart.mean()), float(error))


def trained(
    algo: fl.FederatedAlgorithm, params: Any, data: Any, num_rounds: int, seed: int = 0
) -> RoundState:
    """The state after so many rounds: one program a method, whatever the seed."""
    key = jax.random.key(seed)
    return rounds_of(algo)(key, algo.init(key, params, data), data, num_rounds)


@functools.cache
def rounds_of(algo: fl.FederatedAlgorithm) -> Callable[..., Any]:
    """``(key, state, data, num_rounds) -> state``, compiled once."""

    @jax.jit
    def rounds(key: Any, state: Any, data: Any, num_rounds: Any) -> Any:
        one = lambda _, state: algo.round(key, state, data)[0]  # noqa: E731
        return jax.lax.fori_loop(0, num_rounds, one, state)

    return rounds


def dealt(arrays: Sequence[dict[str, np.ndarray]]) -> fl.data.FederatedDataset:
    """A population of clients, each with examples of its own."""
    owners = np.repeat(np.arange(len(arrays)), [len(one["y"]) for one in arrays])
    whole = {name: np.concatenate([one[name] for one in arrays]) for name in arrays[0]}
    return fl.data.from_arrays(whole, owners, num_clients=len(arrays))
