"""Results of robustness, privacy and compression."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from results_rows import (
    Brief,
    Documents,
    Section,
    bullets,
    number,
    paragraphs,
    provenance,
    table,
)

BUCKETING = {
    "cclip": ((97.77, 97.85), (97.80, 97.85), (97.83, 97.87), (98.19, 98.13), (97.87, 97.95)),
    "rfa": ((84.2, 97.0), (96.2, 97.6), (11.3, 96.2), (11.4, 68.8), (86.4, 97.3)),
    "median": ((44.6, 60.3), (46.7, 71.5), (32.1, 59.9), (9.9, 39.2), (54.6, 82.7)),
    "krum": ((9.9, 27.0), (1.1, 43.8), (10.0, 41.6), (11.4, 10.2), (37.0, 64.6)),
}
ATTACKED = ("sign flip", "label flip", "ipm", "alie", "mimic")
"""Per cent without and with buckets of 2 under these attacks: Karimireddy et al. 2022, exp3."""


def byzantine(documents: Documents) -> Section | None:
    """Rules against attacks on MNIST."""
    name = "byzantine"
    if name not in documents:
        return None
    document = documents[name]
    used = document["settings"]
    whole = used["model"] == "cnn"
    groups: dict[tuple[str, int, str], list[float]] = {}
    for row in document["rows"]:
        place = (row["rule"], row["bucket_size"], row["attack"])
        groups.setdefault(place, []).append(row["accuracy"])
    means = {place: float(np.mean(values)) for place, values in groups.items()}
    attacks = used["attacks"]
    rows = []
    for rule, size in dict.fromkeys(place[:2] for place in means):
        cells = []
        for attack in attacks:
            known = bucketing(rule, size, attack)
            mine = means.get((rule, size, attack))
            cells.append(number(mine, 1) + ("" if known is None else f" [{known:g}]"))
        rows.append((rule, str(size), *cells))
    short = [
        (place, bucketing(*place), mine)
        for place, mine in means.items()
        if bucketing(*place) is not None
    ]
    below = sorted((mine - known, place) for place, known, mine in short if known is not None)
    notes = [
        "Test accuracy in per cent, in brackets the published one: Karimireddy et al. 2022 "
        "(arXiv:2006.09365), their code's results [log], 3 seeds; their bit flip is our sign flip.",
        f"{used['num_byzantine']} of {used['num_clients']} workers hostile, "
        f"{'IID' if used['iid'] else 'dealt by sorted labels'}, {used['num_rounds']} rounds, "
        f"momentum {used['momentum']:g}, s = size of the buckets, seeds "
        f"{', '.join(map(str, used['seeds']))}.",
        "Command: `python experiments/byzantine.py" + (" --preset published`." if whole else "`."),
    ]
    if not whole:
        notes.append(
            f"The network is a perceptron of 32 hidden units on {used['train_size']} images, the "
            "published one a CNN of 1,199,882 parameters on all: compare the order, not the "
            "values. `--preset published` has not been run."
        )
    if below:
        worst = "; ".join(
            f"{p[0]}, s={p[1]}, {p[2]} by {-gap:.1f}" for gap, p in below[:3] if gap < 0
        )
        count = sum(gap < 0 for gap, _ in below)
        words = f" Furthest: {worst}." if worst else ""
        notes.append(f"{count} of the {len(below)} published cells fall short.{words}")
    notes += _robust_remarks(means)
    text = paragraphs(
        table(("rule", "s", *attacks), rows), bullets([*notes, provenance(name, document)])
    )
    brief = []
    places: list[tuple[str, tuple[tuple[str, int], ...]]] = [
        ("median / with buckets of 2", (("median", 1), ("median", 2))),
        ("RFA / with buckets of 2", (("rfa", 1), ("rfa", 2))),
        ("centered clipping", (("cclip", 1),)),
    ]
    for i, (what, wanted) in enumerate(places):
        if not all((*place, "ipm") in means for place in wanted):
            continue
        known = [bucketing(*place, "ipm") for place in wanted]
        here = " / ".join(number(means[(*place, "ipm")], 1) for place in wanted) + " %"
        if what == "centered clipping" and ("mean", 1, "ipm") in means:
            here += f" (the plain mean: {means['mean', 1, 'ipm']:.1f} %)"
        lead = (
            f"{used['num_byzantine']} of {used['num_clients']} hostile by IPM, MNIST non-IID"
            f"{'' if whole else ', small network'}: "
            if i == 0
            else "the same: "
        )
        pairs = zip(known, wanted, strict=True)
        short_of = [size for value, (rule, size) in pairs
                    if value is not None and means[rule, size, "ipm"] < value]  # fmt: skip
        if short_of:
            here += "; falls short" + (" with buckets" if short_of == [2] else "")
        published = " / ".join(number(value, 1) for value in known) + " %"
        brief.append(
            Brief(
                lead + what, published, here, "`python experiments/byzantine.py`" if i == 0 else ""
            )
        )
    return Section("Hostile clients", text, tuple(brief))


def bucketing(rule: str, size: int, attack: str) -> float | None:
    """The published accuracy in per cent, where there is one."""
    if rule not in BUCKETING or attack not in ATTACKED or size not in (1, 2):
        return None
    return BUCKETING[rule][ATTACKED.index(attack)][size - 1]


def _robust_remarks(means: Mapping[tuple[str, int, str], float]) -> list[str]:
    """What the numbers say that a reader might miss."""
    remarks = []
    plain = {a: means[r, s, a] for r, s, a in means if (r, s) == ("mean", 1)}
    clipped = {a: means[r, s, a] for r, s, a in means if (r, s) == ("cclip", 1)}
    equal = [a for a in plain if a in clipped and abs(plain[a] - clipped[a]) < 0.005]
    if equal:
        remarks.append(
            f"Centered clipping equals the plain mean under {', '.join(equal)}: its radius does "
            "not bind there, so these cells say nothing for it. The mean does not break there."
        )
    worse: dict[str, list[str]] = {}
    for (rule, size, attack), mine in means.items():
        if attack != "none" and mine < plain.get(attack, 0) - 20:
            worse.setdefault(rule if size == 1 else f"{rule} with s={size}", []).append(attack)
    if worse:
        shown = "; ".join(f"{rule} under {', '.join(attacks)}" for rule, attacks in worse.items())
        remarks.append(f"More than 20 points below the plain mean: {shown}.")
    if "min-max" in plain and "min-max" in clipped:
        remarks.append(
            f"min-max (not in the paper) takes the mean to {plain['min-max']:.1f} % and centered "
            f"clipping to {clipped['min-max']:.1f} %."
        )
    return remarks


def private(documents: Documents) -> Section | None:
    """Accuracy against epsilon."""
    name = "dp_fedavg"
    if name not in documents:
        return None
    document, rows, brief = documents[name], [], []
    command = "`python experiments/dp_fedavg.py`"
    titles = {"mnist": "MNIST by writer", "cifar10": "CIFAR-10 at 8x8"}
    for row in document["rows"]:
        epsilon = "inf (no noise)" if row["epsilon"] is None else f"{row['epsilon']:g}"
        here = f"{number(100 * row['accuracy'], 1)} ± {number(100 * row['half_width'], 1)}"
        rows.append(
            (
                titles.get(row["dataset"], row["dataset"]),
                epsilon,
                number(row["epsilon_rdp"], 2),
                f"{row['noise_multiplier']:.3g}",
                f"{here} ({len(row['accuracies'])} seeds)",
            )
        )
    notes = [
        "No published run has this setting, so there is nothing to fall short of. Accuracy in per "
        "cent with Student's 95 % interval of the mean over seeds. Epsilon by PLD; the next column "
        "is what RDP would account for the same noise.",
    ]
    for i, (dataset, used) in enumerate(document["settings"].items()):
        mine = [row for row in document["rows"] if row["dataset"] == dataset]
        title = titles.get(dataset, dataset)
        notes.append(
            f"{title}: {used['num_clients']} clients, Poisson cohorts of "
            f"{used['expected_cohort_size']} expected, {used['num_rounds']} rounds, "
            f"{used['epochs']} epochs, clip {used['clip']:g}, {used['hidden']} hidden units "
            f"({mine[0]['num_parameters']} parameters), delta {document['flags']['delta']:g}, "
            "guarantee per client, for the simulated clients."
        )
        epsilons = " / ".join("inf" if r["epsilon"] is None else f"{r['epsilon']:g}" for r in mine)
        what = f"{title} ({used['num_clients']} clients), epsilon {epsilons}"
        here = " / ".join(f"{number(100 * row['accuracy'], 1)}" for row in mine) + " %"
        lead = "DP-FedAvg, " if i == 0 else "the same, "
        brief.append(Brief(lead + what, "-", here, command if i == 0 else ""))
    notes += [
        "Hyper-parameters were tuned on the test data, which the accounting leaves out.",
        f"Command: {command}. {provenance(name, document)}",
    ]
    header = ("data", "epsilon", "RDP", "noise multiplier", "accuracy")
    text = paragraphs(table(header, rows), bullets(notes))
    return Section("Differential privacy per client", text, tuple(brief))


def compression(documents: Documents) -> Section | None:
    """Accuracy against megabytes."""
    name = "compression"
    if name not in documents:
        return None
    document, used = documents[name], documents[name]["settings"]
    command = "`python experiments/compression.py`"
    rows = []
    for row in document["rows"]:
        rows.append(
            (
                row["uplink"],
                number(row["uplink_megabytes"], 1),
                f"{number(100 * row['final_accuracy'], 1)}",
                number(row["megabytes_to_target"], 1),
                f"{row['packed_over_entropy']:.1f}",
            )
        )
    target = f"{100 * used['target']:.0f} %"
    notes = [
        "No published run has this setting. Megabytes are what all clients together have sent up, "
        "fields of fixed width packed; the last column is how many times the bound of an ideal "
        "entropy coder that is.",
        f"LeNet, {used['train_size']} images of CIFAR-10, {used['num_clients']} clients, "
        f"Dirichlet({used['alpha']:g}), {used['cohort_size']} a round, {used['num_rounds']} "
        f"rounds, one seed ({used['seed']}): differences of a point or two mean nothing.",
        f"Command: {command}. {provenance(name, document)}",
    ]
    lost = [row["uplink"] for row in document["rows"] if row["megabytes_to_target"] is None]
    if lost:
        notes.insert(1, f"Did not reach {target}: {', '.join(lost)}.")
    found = {row["uplink"]: row for row in document["rows"]}
    chosen = [n for n in ("plain", "DRIVE", "top 1% + EF") if n in found]
    here = "; ".join(
        f"{found[n]['uplink_megabytes']:{'.0f' if n == 'plain' else '.1f'}} MB "
        f"{number(100 * found[n]['final_accuracy'], 1)} %"
        for n in chosen
    )
    titles = {"top 1% + EF": "top 1 % with feedback"}
    what = "CIFAR-10 LeNet, uplink MB and accuracy: " + "; ".join(titles.get(n, n) for n in chosen)
    header = ("uplink", "MB up", "accuracy (%)", f"MB to {target}", "over entropy")
    text = paragraphs(table(header, rows), bullets(notes))
    return Section("Compressed uplinks", text, (Brief(what, "-", here, command),))


def audit(documents: Documents) -> Section | None:
    """Lower bounds on epsilon against the accountant's, and planted bugs."""
    name = "privacy_audit"
    if name not in documents:
        return None
    document, used = documents[name], documents[name]["settings"]
    command = "`python experiments/privacy_audit.py`"
    rows = [
        (
            f"{row['noise_multiplier']:g}",
            f"{row['sampling_rate']:g}",
            f"{row['accounted']:.2f}",
            number(row["one_run"], 2),
            number(row["gaussian"], 2),
            number(row["estimate"], 2),
            "yes" if row["passed"] else "NO",
        )
        for row in document["rows"]
    ]
    planted = [bug for bug in document["bugs"] if not bug["bug"].startswith("none")]
    caught = [bug for bug in planted if not bug["passed"]]
    bugs = [
        (
            bug["bug"],
            f"{bug['accounted']:.2f}",
            f"{bug['audited']:.2f}",
            "consistent" if bug["passed"] else "caught",
        )
        for bug in document["bugs"]
    ]
    full = [row for row in document["rows"] if row["sampling_rate"] == 1.0 and row["gaussian"]][:3]
    pairs = ", ".join(f"{row['gaussian']:.1f} of {row['accounted']:.1f}" for row in full)
    notes = [
        "No published run has this setting; a correct mechanism has audited <= accounted, a loose "
        "bound says little. One run: Steinke, Nasr, Jagielski 2023, arXiv:2305.08846; estimate: "
        "Andrew et al. 2023, arXiv:2302.03098.",
        f"MNIST, {used['num_writers']} writers, {used['num_canaries']} canary clients, "
        f"{used['num_rounds']} rounds, delta {used['delta']:g}, one seed ({used['seed']}); bounds "
        "hold with 95 % each.",
        f"Command: {command}. {provenance(name, document)}",
    ]
    what = "audit by canary clients: epsilon shown of epsilon accounted; planted bugs caught"
    here = f"{pairs}; {len(caught)} of {len(planted)}"
    columns = ("noise", "sampling", "accounted", "one run", "Gaussian", "estimate", "consistent")
    text = paragraphs(
        table(columns, rows),
        table(("mechanism", "accounted", "audited", "verdict"), bugs),
        bullets(notes),
    )
    return Section("Privacy audit", text, (Brief(what, "-", here, command),))
