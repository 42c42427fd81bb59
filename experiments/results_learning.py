"""Results of learning: McMahan's MNIST and Shakespeare, CIFAR-10, Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from results_rows import (
    COLUMNS,
    NAMES,
    Brief,
    Documents,
    Section,
    bullets,
    compared,
    number,
    paragraphs,
    provenance,
    spread,
    table,
)

MCMAHAN = "McMahan et al. 2017, arXiv:1602.05629 [text]"
MNIST_CELLS = {
    "2nn-iid-b10-e1": "2NN, IID, B=10, E=1: rounds to 97 %",
    "2nn-shards-b10-e1": "2NN, two label shards a client, B=10, E=1: rounds to 97 %",
    "2nn-iid-binf-e1": "2NN, IID, B=inf, E=1: rounds to 97 %",
    "cnn-iid-b10-e1": "CNN, IID, B=10, E=1: rounds to 99 %",
    "cnn-iid-b10-e5": "CNN, IID, B=10, E=5: rounds to 99 %",
}
NIID_BENCH = {"fedavg": (68.2, 62.47), "fedprox": (67.9, 65.63), "scaffold": (69.8, 68.08),
              "fednova": (66.8, 63.89)}  # fmt: skip


HSU = {"model": "cnn", "num_rounds": 1000, "num_clients": 100, "cohort_size": 5, "batch_size": 64,
       "momentum": 0.97, "train_size": 0, "test_size": 0}  # fmt: skip
SHAKESPEARE = {"hidden_size": 256, "num_layers": 2, "num_roles": 0, "fraction": 0.1,
               "sequence_length": 80, "target": 0.54, "max_test_windows": 0}  # fmt: skip


def _as_published(used: Mapping[str, Any], preset: str, wanted: Mapping[str, Any]) -> bool:
    """Whether a run is the published setting: a preset's name does not say what flags changed."""
    return used["preset"] == preset and all(used.get(k) == v for k, v in wanted.items())


def mnist(documents: Documents) -> Section | None:
    """Rounds to a target accuracy on MNIST."""
    name = "mcmahan_mnist"
    if name not in documents:
        return None
    cells, rows, ours = documents[name]["cells"], [], {}
    seconds = sum(cell["seconds"] for cell in cells.values())
    for key, what in MNIST_CELLS.items():
        if key not in cells:
            continue
        cell = cells[key]
        best = f"{cell['best_learning_rate']:g}"
        seeds = cell["rounds_by_learning_rate"][best]
        ours[key] = cell["ours"]
        shown = ", ".join("not reached" if r is None else f"{r:.0f}" for r in seeds)
        reached = "not reached" if cell["ours"] is None else number(cell["ours"])
        here = f"**{reached}**, median of {len(seeds)} seeds ({shown}), rate {best}"
        remark = compared(cell["published"], cell["ours"], unit="rounds", fewer=True)
        rates = ", ".join(cell["rounds_by_learning_rate"])
        command = f"`python experiments/mcmahan_mnist.py --cells {key}`"
        rows.append((what, str(cell["published"]), here, f"{remark}; rates {rates}", command))
    notes = [
        "Rounds are counted as in the paper: the accuracy curve is made monotone and interpolated "
        "between evaluations, and the learning rate is the best of a few for each cell. A rate "
        "is dropped when another one has all of its seeds there.",
        "Ours starts from He initialisation. The paper tunes 11 to 13 rates a cell."
        + _edges(cells),
        f"Time: {seconds:.0f} s for these cells with all rates and seeds (the CNN's was run beside "
        "other work).",
        "100 clients of 600 images, 10 a round, SGD, weights by examples, the first seeds 0, 1, 2.",
    ]
    base, slow = "2nn-iid-b10-e1", "2nn-iid-binf-e1"
    if base in ours and slow in ours and ours[base] and ours[slow]:
        published, gain = 1474 / 87, ours[slow] / ours[base]
        words = compared(published, gain, unit="times")
        what = "rounds with B=inf over rounds with B=10 (what local steps save)"
        rows.append((what, f"{published:.1f}", f"{gain:.1f}", words, "from the rows above"))
    if slow in cells and None in (late := cells[slow]["rounds_by_learning_rate"]).get("0.8", []):
        calm = [r for r in late.get("0.4", []) if r is not None]
        median = f", in {np.median(calm):.0f} rounds (median)" if calm else ""
        notes.append(
            f"B=inf at rate 0.8: {late['0.8'].count(None)} of {len(late['0.8'])} seeds had not "
            f"arrived when the run ended; at 0.4 {len(calm)} of {len(late['0.4'])} did{median}."
        )
    missing = [what for key, what in MNIST_CELLS.items() if key not in cells]
    if missing:
        notes.append(f"Not run yet: {'; '.join(missing)}.")
    text = paragraphs(
        f"Published: {MCMAHAN}, Tables 1 and 2, C = 0.1.",
        table(COLUMNS, rows),
        bullets([*notes, provenance(name, documents[name])]),
    )
    short = {base: "FedAvg, 2NN, MNIST IID, B=10, E=1: rounds to 97 %",
             "2nn-shards-b10-e1": "the same, two label shards a client",
             slow: "the same, IID, B=inf",
             "cnn-iid-b10-e1": "the CNN, IID, B=10, E=1: rounds to 99 %"}  # fmt: skip
    brief = tuple(
        Brief(
            what,
            str(cells[key]["published"]),
            _brief_rounds(cells[key]["published"], ours[key]),
            "`python experiments/mcmahan_mnist.py`" if key == base else "",
        )
        for key, what in short.items()
        if key in cells
    )
    return Section("MNIST: rounds to a target (McMahan et al.)", text, brief)


def _edges(cells: Mapping[str, Any]) -> str:
    """Which cells chose the largest or smallest of their rates: a better one may lie beyond."""
    found = []
    for key, cell in cells.items():
        rates = [float(rate) for rate in cell["rounds_by_learning_rate"]]
        best = cell["best_learning_rate"]
        if len(rates) > 1 and best in (min(rates), max(rates)):
            found.append(f"{key} ({'largest' if best == max(rates) else 'smallest'})")
    words = "At the edge of the rates tried, so that a better one may lie beyond"
    return f" {words}: {', '.join(found)}." if found else ""


def _brief_rounds(published: float, ours: float | None) -> str:
    if ours is None:
        return "not reached: falls short"
    return f"**{number(ours)}**" + ("; falls short" if round(ours) > published else "")


def cifar(documents: Documents) -> Section | None:
    """FedAvg's run of the quick start, and NIID-Bench's methods."""
    parts, notes, brief = [], [], []
    if "fedavg_cifar" in documents:
        last = [row for row in documents["fedavg_cifar"] if "test_accuracy" in row][-1]
        here = f"**{number(100 * last['test_accuracy'], 1)} %** in {last['seconds']:.0f} s on a CPU"
        what = f"FedAvg, CIFAR-10, Dirichlet(0.5), 100 clients, {last['round']} rounds"
        command = "`python experiments/fedavg_cifar.py`"
        parts.append(table(COLUMNS, [(what, "-", f"{here} (1 seed)", "no published run", command)]))
        brief.append(Brief(what, "-", here, command))
    for name in ("heterogeneity_cifar_niid_bench", "heterogeneity_cifar_48", "heterogeneity_cifar"):
        if name not in documents:
            continue
        document = documents[name]
        used, comparable = document["settings"], document["comparable"]
        command = f"`python experiments/heterogeneity_cifar.py{_niid_flags(used)}`"
        parts.append(table(COLUMNS, [_niid_row(r, comparable, command) for r in document["rows"]]))
        notes.append(
            f"{used['num_rounds']} rounds of {used['epochs']} epoch(s), "
            f"{used['train_size'] or 50000} training images, batches of {used['batch_size']}, "
            f"seeds {', '.join(map(str, used['seeds']))}. {provenance(name, document)}"
        )
        if not comparable:
            notes[-1] += " This cut setting is not the published one, and ranks nothing."
    if not parts:
        return None
    niid = [n for n in documents if n.startswith("heterogeneity_cifar")]
    if niid:
        whole = any(documents[n]["comparable"] for n in niid)
        notes.append(
            "Published: NIID-Bench (Li et al. 2021, arXiv:2102.02079) / Flower's rerun of it "
            "[log], LeNet, 10 parties, 50 rounds of 10 epochs, 3 seeds. Remarks compare with "
            "the lower." + ("" if whole else " That setting has not been run here.")
        )
        notes.append(
            "SCAFFOLD has no momentum here, the others 0.9. mu and SCAFFOLD's rate are the best of "
            "two or more for the first seed. Spread: sample standard deviation."
        )
    if "heterogeneity_cifar_48" in documents and "heterogeneity_cifar_niid_bench" not in documents:
        found = {r["method"]: r for r in documents["heterogeneity_cifar_48"]["rows"]}
        order = [m for m in ("fedavg", "fedprox", "scaffold", "fednova") if m in found]
        ours = " / ".join(f"{number(100 * found[m]['final_mean'], 1)}" for m in order)
        brief.append(
            Brief(
                "NIID-Bench, CIFAR-10 Dir(0.5): " + " / ".join(NAMES[m] for m in order) + ", %",
                " / ".join(f"{NIID_BENCH[m][0]:g}" for m in order),
                f"{ours}: a tenth of the images, 48 of 500 epochs, 1 seed; falls short, ranks "
                "nothing",
                "`python experiments/heterogeneity_cifar.py"
                f"{_niid_flags(documents['heterogeneity_cifar_48']['settings'])}`",
            )
        )
    return Section("CIFAR-10 under label skew", paragraphs(*parts, bullets(notes)), tuple(brief))


def _niid_flags(used: Mapping[str, Any]) -> str:
    """The flags that lead from the preset to the setting of a file."""
    flags = "" if used["preset"] == "short" else f" --preset {used['preset']}"
    if used["preset"] == "short" and used["num_rounds"] != 16:
        seeds = " ".join(map(str, used["seeds"]))
        flags += f" --num-rounds {used['num_rounds']} --seeds {seeds} --alphas 0.5"
    return flags


def _niid_row(row: Mapping[str, Any], comparable: bool, command: str) -> tuple[str, ...]:
    alpha, method = row["alpha"], row["method"]
    what = NAMES[method] + ("" if alpha is None else f", Dirichlet({alpha:g})")
    if "tuned" in row:
        what += f", {'mu' if method == 'fedprox' else 'rate'} {row['tuned']:g}"
    here = spread([c[-1] for c in row["curves"].values()], factor=100, unit=" %")
    known = NIID_BENCH.get(method) if alpha == 0.5 else None
    if known is None:
        return (what, "-", here, "baseline" if alpha is None else "no published run", command)
    remark = compared(min(known), 100 * row["final_mean"], unit="points")
    remark += "" if comparable else ", in a fraction of the training"
    return (what, f"{known[0]:g} / {known[1]:g} %", here, remark, command)


def fashion(documents: Documents) -> Section | None:
    """FedAvg against FedAvgM over the skew of Fashion-MNIST."""
    name = "fashion_dirichlet"
    if name not in documents:
        return None
    document = documents[name]
    used, summary = document["settings"], document["summary"]
    whole = _as_published(used, "published", HSU)
    curves = {
        (r["alpha"], r["method"], r["effective_rate"], r["seed"]): r for r in document["rows"]
    }
    cells = {(r["alpha"], r["seed"]): r.get("seconds_of_cell", 0.0) for r in document["rows"]}
    seconds = sum(cells.values())  # methods and rates of a cell run side by side
    rows, gains = [], []
    command = "`python experiments/fashion_dirichlet.py" + (
        "" if not whole else " --preset published"
    )
    for cell in summary:
        alpha, method, rate = cell["alpha"], cell["method"], cell["effective_rate"]
        values = [r["accuracy"] for key, r in curves.items() if key[:3] == (alpha, method, rate)]
        remark = f"effective rate {rate:g}"
        if cell["published"] is not None:
            words = compared(100 * cell["published"], 100 * cell["mean"], unit="points")
            remark = f"{words}{'' if whole else ' (smaller model, fewer rounds)'}; {remark}"
        published = "-" if cell["published"] is None else f"{number(100 * cell['published'], 1)} %"
        here = spread(values, factor=100, unit=" %")
        rows.append((f"{NAMES[method]}, alpha {alpha:g}", published, here, remark, command + "`"))
        gains.append((alpha, cell))
    brief = []
    skewed = min(cell["alpha"] for cell in summary)
    pair = [cell for alpha, cell in gains if alpha == skewed]
    if len(pair) == 2 and all(cell["published"] is not None for cell in pair):
        published = " / ".join(f"{number(100 * cell['published'], 1)}" for cell in pair)
        ours = " / ".join(
            number(100 * cell["mean"], 1)
            + ("" if cell["std"] is None else f" ± {number(100 * cell['std'], 1)}")
            for cell in pair
        )
        gain = pair[1]["mean"] - pair[0]["mean"], pair[1]["published"] - pair[0]["published"]
        words = "" if gain[0] >= gain[1] else "; the gain falls short"
        what = f"Fashion-MNIST, Dirichlet({skewed:g}), FedAvg / FedAvgM, %"
        cut = "" if whole else f" ({used['model']}, {used['num_rounds']} rounds)"
        here = f"{ours}{cut}{words}"
        brief.append(Brief(what, published, here, command + "`"))
    notes = [
        "Published: Flower's rerun of Hsu et al. 2019 (arXiv:1909.06335) on Fashion-MNIST, read "
        "off a plot, about a point [plot]: 100 clients, 5 a round, batches of 64, rate 0.003, "
        "Nesterov momentum 0.97, 1,000 rounds.",
        f"Here: {used['model']}, {used['num_rounds']} rounds, {used['num_clients']} clients, "
        f"{used['cohort_size']} a round, momentum {used['momentum']:g}. Accuracy is the mean of "
        "the evaluations in the last tenth of the rounds. The effective rate (local rate over "
        "1 - momentum) is the best of "
        f"{', '.join(f'{r:g}' for r in used['effective_rates'])} in the mean of the same test "
        "accuracies over seeds, for each method and alpha; a seed draws the partition, too.",
        f"Time: {seconds:.0f} s. {provenance(name, document)}",
    ]
    text = paragraphs(table(COLUMNS, rows), bullets(notes))
    return Section("Fashion-MNIST: server momentum under label skew", text, tuple(brief))


def _rates_tried(rows: Iterable[Mapping[str, Any]]) -> str:
    """What was tuned over, and where a better rate may lie beyond: ratios hang on FedSGD's."""
    tried: dict[str, None] = {}
    edges = []
    for row in rows:
        rates = sorted(map(float, row["rounds_by_rate"]))
        kind = "FedSGD" if row["cell"] == "fedsgd" else "FedAvg"
        tried[f"{kind} {', '.join(f'{rate:g}' for rate in rates)}"] = None
        if row["best_rate"] in (rates[0], rates[-1]):
            edges.append(f"{row['cell']} {'by role' if row['deal'] == 'role' else 'IID'}")
    words = f" Rates tried: {'; '.join(tried)}."
    return words + (f" Best at the edge of these: {', '.join(edges)}." if edges else "")


def shakespeare(documents: Documents) -> Section | None:
    """Rounds to a target of next-character accuracy, by role and IID."""
    name = "shakespeare"
    if name not in documents:
        return None
    document = documents[name]
    used = document["settings"]
    whole = _as_published(used, "paper", SHAKESPEARE)
    command = "`python experiments/shakespeare.py" + (" --preset paper`" if whole else "`")
    found = {(row["cell"], row["deal"]): row for row in document["rows"]}
    rows, brief = [], []
    for (cell, deal), row in found.items():
        rate = f"{row['best_rate']:g}"
        seeds = row["rounds_by_rate"][rate]
        shown = f"{number(row['rounds'])}" if row["rounds"] is not None else "not reached"
        base = found.get(("fedsgd", deal))
        remark, gain = f"rate {rate}", None
        if cell != "fedsgd" and base is not None and base["rounds"] and row["rounds"]:
            published, gain = base["published"] / row["published"], base["rounds"] / row["rounds"]
            words = compared(published, gain, unit="times")
            remark = (
                f"{gain:.1f} times fewer rounds than FedSGD, published {published:.1f}: {words}"
            )
            remark += f"; rate {rate}"
        elif row["rounds"] is None:
            remark = f"falls short: not reached; rate {rate}"
        roles = row["test_by_role"]
        here = f"{shown} ({f'median of {len(seeds)} seeds' if len(seeds) > 1 else '1 seed'})"
        remark += f"; roles {number(100 * roles['mean'], 1)} % on average"
        remark += f", worst tenth {number(100 * roles['worst'], 1)} %"
        dealt = "by role" if deal == "role" else "IID"
        rows.append((f"{cell}, {dealt}", str(row["published"]), here, remark, command))
        if gain is not None and cell == "e1-b10":
            what = f"Shakespeare {dealt}, char-LSTM, B=10, E=1: times fewer rounds than FedSGD"
            words = "" if gain >= published else ", falls short"
            cut = "" if whole else f" (smaller LSTM, to {100 * used['target']:.0f} %)"
            brief.append(Brief(what, f"{published:.1f}", f"{gain:.1f}{words}{cut}", command))
    notes = [
        f"Published: {MCMAHAN}, Table 2: rounds to 54 %, LSTM of 2 x 256 units, 1,146 roles.",
        f"Here: rounds to {100 * used['target']:.0f} % of the characters of the roles' later "
        f"speeches, LSTM of {used['num_layers']} x {used['hidden_size']} units, "
        f"{used['num_roles'] or 'all'} roles, a tenth of them a round. Another edition and split: "
        "compare ratios of rounds.",
        "The rate is the best of a few for each cell, by the same test accuracy. Per-role figures "
        "are of the first seed's model when it stopped, at the target as a rule."
        + _rates_tried(found.values()),
        f"Time: {sum(row['seconds'] for row in found.values()):.0f} s. "
        + provenance(name, document),
    ]
    text = paragraphs(table(COLUMNS, rows), bullets(notes))
    return Section("Shakespeare by role", text, tuple(brief))
