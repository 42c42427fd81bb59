"""Results of speed: rounds of our own, beside other simulators, and on several devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from results_rows import Brief, Documents, Section, bullets, number, paragraphs, provenance, table

SYSTEMS = {"ours": "here", "pfl": "pfl 0.6 (one process)", "flwr": "Flower 1.41",
           "loop": "Python loop of jitted steps", "padded": "our round, padded"}  # fmt: skip
WORKLOADS = {"pfl-cnn": "pfl's CIFAR-10 CNN, cohort 50",
             "logreg": "logistic regression, cohort 10",
             "2nn": "2NN, cohort 10",
             "lognormal": "2NN, log-normal(1.5) sizes, cohort 100"}  # fmt: skip
SLOTS = {"clip_qsgd": "clipping with QSGD", "clip_top_k": "clipping with top 1 %",
         "median": "the median of 50 messages", "secure_mean": "`secure_mean`",
         "fedprox": "FedProx", "scaffold": "SCAFFOLD", "fednova": "FedNova",
         "mimelite": "MimeLite"}  # fmt: skip


def rounds(documents: Documents) -> Section | None:
    """Our own rounds, by workload and strategy, and what they were aimed at."""
    name = "round"
    if name not in documents:
        return None
    document, rows = documents[name], []
    for key, work in document["workloads"].items():
        for row in work["rows"]:
            seconds = row["seconds"]
            per = 1000 / row["num_rounds"]
            rows.append(
                (
                    named(key),
                    row["strategy"],
                    f"{short(per * seconds['median'])} ({short(per * seconds['min'])} to "
                    f"{short(per * seconds['max'])})",
                    f"{row['cold_seconds']:.1f}",
                    f"{row['gflops']:.0f}",
                    f"{row['padded_over_real']:.2f}",
                )
            )
    header = (
        "workload",
        "strategy",
        "ms a round",
        "cold start, s",
        "GFLOP/s",
        "padded / real steps",
    )
    targets = [t for t in document["targets"] if t["measured"] is not None]
    aims = [
        (
            t["name"],
            f"{t['sense']} {t['bound']:g}",
            f"{t['measured']:.3g}",
            "met" if t["passed"] else "falls short",
        )
        for t in targets
    ]
    notes = [
        f"Medians of {document['repeats']} (least to most). Aims are our own, no published "
        "figures. A cold start compiles. Command: `python experiments/benchmarks/round.py`.",
        provenance(name, document),
    ]
    measured = {t["name"]: t for t in targets}
    warm = measured.get("logreg, auto: seconds for 100 rounds, warm")
    cold = measured.get("logreg, auto: seconds for 100 rounds, cold")
    uneven = measured.get("log-normal, auto: times faster than vmapped")
    share = measured.get("pfl-cnn, auto: share of sgemm")
    command = "`python experiments/benchmarks/round.py`"
    brief = []
    if warm and cold:
        what = "100 rounds of the 1000-client logistic regression, 2 CPU cores"
        here = f"{warm['measured']:.2f} s warm, {cold['measured']:.1f} s cold"
        brief.append(Brief(what, "-", here, command))
    if uneven:
        what = "log-normal(1.5) sizes: times faster than padding to the longest client"
        brief.append(Brief(what, "-", f"{uneven['measured']:.0f}"))
    if share:
        gflops = [
            r["gflops"] for r in document["workloads"]["pfl-cnn"]["rows"] if r["strategy"] == "auto"
        ]
        here = f"{gflops[0]:.0f} GFLOP/s, {100 * share['measured']:.0f} % of sgemm"
        here += (
            "" if share["passed"] else f" (falls short of our aim, {100 * share['bound']:.0f} %)"
        )
        brief.append(Brief("pfl's CIFAR-10 CNN, 2 CPU cores", "-", here))
    text = paragraphs(
        table(header, rows), table(("aim", "bound", "measured", "verdict"), aims), bullets(notes)
    )
    return Section("Speed of a round", text, tuple(brief))


def costs(documents: Documents) -> Section | None:
    """What algorithms and slots cost over a round of FedAvg."""
    rows, notes, brief = [], [], []
    seen = {"fedavg"}
    for name in ("round_algorithms", "round_slots", "round"):
        if name not in documents:
            continue
        document = documents[name]
        others = [row for row in document["algorithms"] if row["algorithm"] not in seen]
        seen |= {row["algorithm"] for row in others}
        if not others:
            continue
        keys = " ".join(row["algorithm"] for row in others)
        for row in others:
            ratio = row["ratio"]
            rows.append(
                (
                    SLOTS.get(row["algorithm"], row["algorithm"]),
                    f"{ratio['median']:.2f} "
                    f"({ratio['quartile_1']:.2f} to {ratio['quartile_3']:.2f})",
                    f"{row['state_bytes'] / 1e6:.0f}",
                )
            )
        notes.append(
            f"{keys}: medians of {document['repeats']} turns. {provenance(name, document)}"
        )
        shown = ", ".join(
            f"{SLOTS.get(row['algorithm'], row['algorithm'])}: {row['ratio']['median']:.2f}"
            for row in others
        )
        if name == "round":
            continue  # what is on no list of its own
        what = "the same: slots" if brief else "pfl's CNN, times a round of FedAvg: algorithms"
        command = "" if brief else "`python experiments/benchmarks/round.py`"
        brief.append(Brief(what, "-", shown, command))
    if not rows:
        return None
    notes.insert(
        0,
        "On pfl's CIFAR-10 CNN, 1000 clients of 50, 50 a round; ratios are taken turn by turn, "
        "with quartiles: few turns on a shared machine, so a tenth more or less means nothing. "
        "State: of the server and of all clients' rows.",
    )
    header = ("algorithm or slot", "times a round of FedAvg", "state, MB")
    return Section(
        "What algorithms and slots cost",
        paragraphs(table(header, rows), bullets(notes)),
        tuple(brief),
    )


def peers(documents: Documents) -> Section | None:
    """Other simulators in the same run."""
    name = "peers"
    if name not in documents:
        return None
    document = documents[name]
    later = documents.get("peers_logreg")
    command = "`python experiments/benchmarks/peers.py`"
    rows, brief, notes = [], [], []
    for key, work in document["workloads"].items():
        ratios: dict[str, float] = {}
        for row in work["rows"]:
            milliseconds, ratio = row["ms_per_round"], row["ratio"]
            agrees = row.get("agrees")
            said = "" if row["system"] == "ours" else "equal"
            if agrees is False:
                said = f"differs, {number(100 * row['agreement'] / row['largest_change'], 1)} %"
            rows.append(
                (
                    named(key),
                    SYSTEMS[row["system"]],
                    f"{short(milliseconds['median'])} "
                    f"({short(milliseconds['min'])} to {short(milliseconds['max'])})",
                    f"{ratio['median']:.2f}",
                    f"{row['cold_seconds']:.1f}",
                    said,
                )
            )
            ratios[row["system"]] = ratio["median"]
        again = None if later is None else later["workloads"].get(key)
        newer = None
        if again:
            newer = next(
                (r["ratio"]["median"] for r in again["rows"] if r["system"] == "pfl"), None
            )
        if newer is not None:
            notes.append(
                f"{named(key)}: a later run, after `run` had lost 20 ms a call, has "
                f"{newer:.1f} times pfl. {provenance('peers_logreg', later or {})}"
            )
        if newer is not None:
            ratios["pfl"] = newer
        shown = [
            f"{SYSTEMS[system]}: {number(ratio, 1 if ratio > 3 else 2)}"
            + (" (a later run)" if system == "pfl" and newer is not None else "")
            for system, ratio in ratios.items()
            if system != "ours"
        ]
        for target in document["targets"]:
            # The figure of a later run has no verdict on record.
            pair = target["name"] == f"{key}: times faster than loop"
            if pair and target["passed"] is False:
                shown[list(ratios).index("loop") - 1] += (
                    f" (falls short of our aim, {target['bound']:g})"
                )
        lead = "the same, " if brief else "times as fast as others, "
        what = lead + named(key)
        brief.append(Brief(what, "-", "; ".join(shown), "" if brief else command))
    notes = [
        "Same model, clients and batches; the systems take turns in one run and use the same "
        "cores. Ratios are medians of the turns, above 1 ours is faster. Published minutes of "
        "other simulators are from other machines and not comparable.",
        "End model: after full batches without dropout the systems must reach ours; where one "
        "differs by more than rounding, by how much of the largest change of a weight.",
        *_missed(document),
        *notes,
        "Part of Flower's time on small models is its polling, 0.1 s. Where a system has variants "
        "(form of convolutions, cores a client) the faster one is shown." + _loop_remark(document),
        f"Command: {command}. {provenance(name, document)}",
    ]
    header = ("workload", "system", "ms a round", "ours is faster by", "cold start, s", "end model")
    return Section(
        "Beside other simulators", paragraphs(table(header, rows), bullets(notes)), tuple(brief)
    )


def short(value: float) -> str:
    """Three digits, no exponent."""
    return number(value, 0 if value >= 100 else 1 if value >= 10 else 2)


def named(workload: str) -> str:
    """What a workload is called in the tables."""
    return WORKLOADS.get(workload, workload)


def _loop_remark(document: Mapping[str, Any]) -> str:
    """How the loop fares with XLA's own convolution."""
    rows = document["workloads"].get("pfl-cnn", {"rows": []})["rows"]
    variants = next((r["variants_ms"] for r in rows if r["system"] == "loop"), {})
    if not {"matmul", "xla"} <= set(variants):
        return ""
    times = variants["xla"] / variants["matmul"]
    return f" The loop has our convolution; with XLA's a turn took {times:.2f} times as long."


def _missed(document: Mapping[str, Any]) -> list[str]:
    """Aims that were not met, in words."""
    missed = [t for t in document["targets"] if t["passed"] is False and t["bound"] is not None]
    return [
        f"Falls short of our aim: {t['name']} {t['measured']:.2f}, aimed at {t['bound']:g}."
        for t in missed
    ]


def processes(documents: Documents) -> Section | None:
    """Two devices and two processes against one device."""
    name = "processes"
    if name not in documents:
        return None
    document, rows, brief = documents[name], [], []
    for key, ways in document["workloads"].items():
        for way, row in ways.items():
            rows.append(
                (
                    named(key),
                    way,
                    f"{1000 * row['median']:.2f}",
                    f"{row['times_faster']:.2f}",
                )
            )
    found = {key: ways for key, ways in document["workloads"].items() if len(ways) > 1}
    if found:
        here = "; ".join(
            ", ".join(
                f"{row['times_faster']:.2f} as {way}"
                for way, row in ways.items()
                if way != "one device"
            )
            for ways in found.values()
        )
        what = "two devices of one core against one of two: " + "; ".join(named(k) for k in found)
        brief.append(Brief(what, "-", here, "`python experiments/benchmarks/processes.py`"))
    turns = max(len(row["all"]) for ways in document["workloads"].values() for row in ways.values())
    notes = [
        "Two devices have one core each, one device has both; a value below 1 is slower than one "
        "device: there the sum between processes costs more than the round"
        f"{_sum_of_processes(document)}. Medians of {turns}. "
        "Command: `python experiments/benchmarks/processes.py`.",
        provenance(name, document),
    ]
    header = ("workload", "way", "ms a round", "times as fast as one device")
    return Section(
        "Devices and processes", paragraphs(table(header, rows), bullets(notes)), tuple(brief)
    )


def _sum_of_processes(document: Mapping[str, Any]) -> str:
    """What a round of two processes takes longer than one of two devices in one process."""
    ways = document["workloads"].get("logreg", {})
    if not {"two processes", "two forced devices"} <= set(ways):
        return ""
    extra = 1000 * (ways["two processes"]["median"] - ways["two forced devices"]["median"])
    return f" (logistic regression: {number(extra, 1)} ms more than two devices of one process)"
