"""One workload: all systems warm, then in turns; and whether they compute the same."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from measure import spread

from peers_programs import environments, exports
from peers_programs.exports import Setting
from peers_programs.workers import Worker, WorkerFailed

Row = dict[str, Any]
AGREEMENT_ROUNDS = 2
AGREEMENT_TOLERANCE = 1e-10
"""Of the largest change of a weight. All compute in float64 from the same numbers."""


@dataclasses.dataclass(frozen=True)
class System:
    """Something that does federated rounds."""

    program: str
    variants: tuple[str, ...]
    """All are tried, the fastest is kept."""
    environment: str | None = None
    """In `environments.REQUIREMENTS`; None: ours."""
    conv_variants: tuple[str, ...] = ()
    """Instead of `variants` where the network has convolutions."""
    only: tuple[str, ...] = ()
    """Workloads that it is measured on; none: all."""
    tolerance: float = AGREEMENT_TOLERANCE
    """How far its model may be from ours, of the largest change of a weight."""

    def variants_for(self, setting: Setting) -> tuple[str, ...]:
        """The variants that make a difference on a workload."""
        convs = bool(setting.net.features)
        return self.conv_variants if convs and self.conv_variants else self.variants


SYSTEMS = {
    "ours": System("ours_worker.py", ("auto-cores", "auto")),
    "padded": System("ours_worker.py", ("vmapped-cores", "vmapped"), only=("lognormal",)),
    "loop": System(
        "loop_worker.py",
        ("auto-cores", "auto-threads", "auto"),
        conv_variants=("matmul-cores", "matmul-threads", "matmul", "xla"),
    ),
    "fedjax": System(
        "fedjax_worker.py",
        ("jit", "pmap"),
        environment="fedjax",
        conv_variants=("jit-matmul", "jit-xla", "pmap-matmul"),
    ),
    # Trains in float64, and sends float32 between rounds.
    "pfl": System("pfl_worker.py", ("2", "1", "2x1"), environment="pfl", tolerance=1e-5),
    "flwr": System("flower_worker.py", ("1", "2"), environment="flwr"),
    "blazefl": System(
        "blazefl_worker.py",
        ("threads-2x1", "processes-2x1", "serial-1x1", "serial-1x2"),
        environment="blazefl",
    ),
}
"""padded is our own `vmapped()`, every client as long as the cohort's longest; loop is a Python
loop over jitted steps. Variants: strategies of ours and whether a core is a device, forms of
convolutions and how the loop uses the cores, backends of FedJAX, PyTorch threads of pfl or
processes by threads, cores a client in Flower (as many PyTorch threads), modes of BlazeFL with
workers by threads; see the programs."""


@dataclasses.dataclass
class Bench:
    """Where things lie, and how often is measured."""

    folder: Path
    """Temporary files and logs."""
    env_dir: Path
    repeats: int
    num_threads: int
    rounds_per_turn: int | None = None

    def __post_init__(self) -> None:
        self._pythons: dict[str, Path] = {}
        self._logs = 0
        self._open: list[Worker] = []

    def worker(self, system: System, variant: str, folder: Path) -> Worker:
        """Starts a system's program, in its environment.

        Raises:
          CannotInstall: if the environment cannot be made.
          WorkerFailed: if the program does not come up.
        """
        name = system.environment
        if name is not None and name not in self._pythons:
            self._pythons[name] = environments.prepare(name, self.env_dir)
        self._logs += 1
        worker = Worker(
            system.program,
            folder,
            variant=variant,
            python=None if name is None else self._pythons[name],
            num_threads=self.num_threads,
            log=self.folder / f"{self._logs:03d}_{Path(system.program).stem}_{variant}.log",
        )
        self._open.append(worker)
        return worker

    def close(self) -> None:
        """Ends all workers that still run, frozen or not."""
        while self._open:
            self._open.pop().close()

    def measure(self, name: str, setting: Setting, systems: tuple[str, ...]) -> Row:
        """Times rounds of all systems on a workload.

        A system is started and does one round (its cold time) and a turn that is not counted; then
        the systems take turns, every other turn backwards, and whoever has no turn is frozen.

        Returns:
          ``data, num_rounds_a_turn, turns`` and ``rows``, one a system.
        """
        systems = tuple(s for s in systems if not SYSTEMS[s].only or name in SYSTEMS[s].only)
        number = self.rounds_per_turn or setting.rounds_per_turn
        repeats = min(self.repeats, setting.max_repeats)
        task = exports.write(
            folder := self.folder / f"{name}-time",
            setting,
            num_rounds=1 + number * (1 + repeats),
            num_threads=self.num_threads,
        )
        rows: dict[str, Row] = {}
        ready: dict[str, Worker] = {}
        try:
            for system in systems:
                rows[system], worker = self._warm(system, setting, folder, number)
                if worker is not None:
                    ready[system] = worker
            seconds = self._take_turns(ready, rows, number, repeats)
        finally:
            self.close()
            shutil.rmtree(folder)  # up to 1 GB
        for system, times in seconds.items():
            per_round = [1e3 * time / number for time in times]
            rows[system]["ms_per_round"] = {**spread(per_round), "all": per_round}
        for system in seconds:
            if "ours" in seconds:  # by turn, so that drift of the machine cancels
                pairs = zip(seconds[system], seconds["ours"], strict=True)
                rows[system]["ratio"] = spread([theirs / mine for theirs, mine in pairs])
        return {
            "data": task["data"],
            "rounds_per_turn": number,
            "turns": repeats,
            "cohort_size": setting.workload.cohort_size,
            "rows": list(rows.values()),
        }

    def _warm(
        self, name: str, setting: Setting, folder: Path, number: int
    ) -> tuple[Row, Worker | None]:
        """The fastest variant of a system after its first rounds, frozen; None if none runs."""
        system, best, tried = SYSTEMS[name], None, {}
        row: Row = {"system": name}
        for variant in system.variants_for(setting):
            worker = None
            try:
                worker = self.worker(system, variant, folder)
                worker.rounds(1)
                tried[variant] = 1e3 * worker.rounds(number) / number
            except (environments.CannotInstall, WorkerFailed) as error:
                row["error"] = f"{type(error).__name__}: {error}"
                print(f"  {name} ({variant}): {row['error']}", flush=True)
                if worker is not None:
                    worker.close()
                continue
            print(
                f"  {name} ({variant}): first round after {worker.cold_seconds:.1f} s, "
                f"then {tried[variant]:.1f} ms a round",
                flush=True,
            )
            if best is not None and tried[variant] >= tried[best[0]]:
                worker.close()
                continue
            if best is not None:
                best[1].close()
            best = variant, worker
            worker.freeze()
        if best is None:
            return row, None
        row.pop("error", None)
        variant, worker = best
        about = {"variant": variant, "variants_ms": tried, "cold_seconds": worker.cold_seconds}
        return {**row, **about, "versions": worker.versions}, worker

    def _take_turns(
        self, ready: dict[str, Worker], rows: dict[str, Row], number: int, repeats: int
    ) -> dict[str, list[float]]:
        seconds: dict[str, list[float]] = {name: [] for name in ready}
        for turn in range(repeats):
            for name in list(ready) if turn % 2 == 0 else reversed(list(ready)):
                if "error" in rows[name]:
                    continue
                worker = ready[name]
                worker.thaw()
                try:
                    seconds[name].append(worker.rounds(number))
                except WorkerFailed as error:
                    rows[name]["error"] = f"WorkerFailed: {error}"
                    print(f"  {name}: {error}", flush=True)
                worker.freeze()
        return {name: times for name, times in seconds.items() if "error" not in rows[name]}

    def agree(self, name: str, setting: Setting, rows: list[Row]) -> None:
        """Adds to every system's row how far its model is from ours after the same work.

        Two rounds of several full-batch epochs of the same clients without dropout, from the same
        weights (see `exports.write`): nothing is left to chance, so all must reach one model.
        ``agreement`` is the largest difference of a weight, ``largest_change`` the largest change
        by our training, ``agrees`` whether the first is within the system's `tolerance` of the
        second.
        """
        exports.write(
            folder := self.folder / f"{name}-agree",
            setting,
            num_rounds=AGREEMENT_ROUNDS,
            num_threads=self.num_threads,
            purpose="agree",
        )
        start = load(folder / "weights.npz")
        mine = next((row["variant"] for row in rows if row["system"] == "ours"), "auto-cores")
        ours = self._trained("ours", mine, folder)
        change = largest_difference(ours, start)
        for row in rows:
            if "variant" in row and row["system"] != "ours":
                try:
                    theirs = self._trained(row["system"], row["variant"], folder)
                except WorkerFailed as error:
                    row["agreement_error"] = str(error)
                    continue
                row["agreement"] = difference = largest_difference(theirs, ours)
                row["largest_change"] = change
                row["agrees"] = bool(difference <= SYSTEMS[row["system"]].tolerance * change)

    def _trained(self, name: str, variant: str, folder: Path) -> dict[str, np.ndarray]:
        worker = self.worker(SYSTEMS[name], variant, folder)
        try:
            worker.rounds(AGREEMENT_ROUNDS)
            worker.weights(path := folder / f"{name}-{variant}.npz")
        finally:
            worker.close()
        return load(path)


def load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file."""
    with np.load(path) as file:
        return dict(file)


def largest_difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """The largest absolute difference of two models' weights.

    Raises:
      ValueError: if they are not of one form.

    Example:
      >>> largest_difference({"w": np.array([1.0, 2.0])}, {"w": np.array([1.0, 2.5])})
      0.5
    """
    shapes = [{name: value.shape for name, value in model.items()} for model in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the models differ in form: {shapes[0]} and {shapes[1]}")
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)
