"""What each factory's product is called in a sentence; others are told by name and settings."""

from __future__ import annotations

import dataclasses
import math
import re
import textwrap
from typing import Any

from fedjax_lite.checks.made import maker_of
from fedjax_lite.describe.notes import Piece, is_ours, is_part, read
from fedjax_lite.describe.numbers import figure, function_words
from fedjax_lite.describe.optimizers import is_optimizer, read_optimizer

Segments = tuple[str, ...]

WORDS: dict[str, Segments] = {
    # samplers
    "everyone": ("every client",),
    "uniform": ("{cohort_size} clients, uniformly without replacement",),
    "weighted": ("{cohort_size} clients without replacement, in proportion to their sizes",),
    "poisson": (
        "every client independently with probability {rate} (Poisson sampling",
        ", room for {capacity}",
        ")",
    ),
    "dropout": ("{sampler}; each of them drops out with probability {rate}",),
    "once_an_epoch": (
        "{cohort_size} clients in turns, each of the {num_clients} once before anybody comes again",
    ),
    "cyclic": ("{cohort_size} clients in turns", ", each epoch in {reshuffle:another order}"),
    "multinomial": ("{cohort_size} independent draws, in proportion to given probabilities",),
    "importance": (
        "{cohort_size} clients without replacement, with exact inclusion probabilities",
    ),
    "stratified": ("{clients_per_group} clients of each group, uniformly without replacement",),
    "available": ("{cohort_size} of the clients that are available (by {by})",),
    "at_least_once": (
        "{cohort_size} clients at random, everybody at least once in {every} rounds",
    ),
    "active": (
        "{cohort_size} clients, those with a high last {metric} more often (active federated "
        "learning, sharpness {sharpness})",
    ),
    "oort": ("{cohort_size} clients by Oort, of high utility by their last {metric} or new",),
    "counted": ("{sampler} (participation counted)",),
    "lost_midway": (
        "{sampler}; each of them is lost midway with probability {rate}, with its work",
    ),
    # aggregators
    "total": ("the weighted sum of the messages over {denominator}",),
    "silent": ("nobody hears of it, clients are chosen by it",),
    "norm_shares": ("probabilities by the norms, {cohort_size} clients expected to send",),
    "mean": ("the weighted mean",),
    "uniform_mean": ("the mean with weight 1 for every client",),
    "mean_of_products": (
        "the weighted mean of the factors and, each client's for itself, of their products",
    ),
    "median": ("the coordinate-wise median",),
    "trimmed_mean": ("the coordinate-wise mean, a share of {fraction} cut on either side",),
    "krum": ("Krum: the one message nearest to its neighbours (num_byzantine {num_byzantine})",),
    "multi_krum": (
        "Multi-Krum: the mean of the messages nearest to their neighbours (num_byzantine "
        "{num_byzantine}",
        ", num_selected {num_selected}",
        ")",
    ),
    "bulyan": (
        "Bulyan: Krum over and over, then the mean around the median (num_byzantine "
        "{num_byzantine})",
    ),
    "geometric_median": (
        "the geometric median ({iterations} smoothed Weiszfeld steps",
        ", smoothing {smoothing}",
        ")",
    ),
    "centered_clipping": (
        "centred clipping around the last aggregate (max_distance {max_distance}",
        ", iterations {iterations}",
        ")",
    ),
    "norm_bound": ("messages scaled down to L2 norm {max_norm}, then {inner}",),
    "min_norm": (
        "the shortest mixture of the messages",
        " ({normalise:each of length 1})",
        ", weights at most {deviation} from the mean's",
    ),
    "bucketing": ("means of {bucket_size} random clients each, then {inner}",),
    "hierarchical": ("{count} edge servers that average their own clients, then {inner}",),
    "edge_averages": (
        "the mean of each of {num_edges} edges, which meet in the cloud every {edge_rounds} rounds",
        " (at an edge not the mean: {inner})",
    ),
    "in_clusters": ("in each of {num_clusters} clusters {inner}",),
    "redundancy": ("groups of clients that do the same work, each by majority (DRACO)",),
    "majority_vote": ("the sign that the majority of clients sent, coordinate by coordinate",),
    "diagnosed": ("{inner}; how far clients drift apart is measured beside it",),
    "secure_mean": (
        "the mean by secure aggregation, clipped to {max_abs}, rounded to {bits} bits",
        ", of at least {threshold:many} clients",
    ),
    "encrypted_mean": ("the mean, added up under homomorphic encryption (CKKS)",),
    "gaussian_sum": (
        "each update clipped to L2 norm {clip}",
        " ({per_layer:layer by layer})",
        ", summed with weight 1, Gaussian noise of standard deviation {noise_multiplier} times the "
        "clip added once, divided by {denominator}",
    ),
    "adaptive_sum": (
        "each update clipped to an adapted L2 norm (from {initial_clip} towards the "
        "{target_quantile} quantile, rate {clip_learning_rate}), summed with weight 1, Gaussian "
        "noise of {noise_multiplier} times the clip, divided by {denominator}",
    ),
    "tree_sum": (
        "each update clipped to L2 norm {clip}",
        " ({per_layer:layer by layer})",
        ", summed with weight 1, noise of a binary tree over the rounds (standard deviation "
        "{noise_multiplier} times the clip a node), divided by {denominator}",
    ),
    "matrix_sum": (
        "each update clipped to L2 norm {clip}",
        " ({per_layer:layer by layer})",
        ", summed with weight 1, noise of standard deviation {noise_multiplier} times the clip, "
        "correlated over the rounds by a banded matrix, divided by {denominator}",
    ),
    "secure_gaussian_sum": (
        "each update clipped to L2 norm {clip} and rounded to {bits} bits, summed with weight 1 in "
        "integers, Gaussian noise of standard deviation {noise_multiplier} times the clip added "
        "once, divided by {cohort_size}",
    ),
    "modular_mean": ("the mean of integers summed modulo a power of two, decoded",),
    "byzantine": (
        "hostile clients",
        " ({clients:ids})",
        " (each client with probability {fraction})",
        " send {attack}; then {inner}",
    ),
    # attacks
    "sign_flip": ("the opposite of their update, times {scale}",),
    "alie": ("the honest mean, shifted by a few standard deviations (ALIE", ", z {z}", ")"),
    "ipm": ("the negative mean of the honest ones times {scale} (inner product manipulation)",),
    "gaussian": ("Gaussian noise of standard deviation {stddev}",),
    "min_max": ("the farthest update within the honest spread (min-max, direction {direction})",),
    "min_sum": ("the farthest update within the honest sums (min-sum, direction {direction})",),
    "mimic": ("the update of one honest client, all the same (mimic)",),
    "model_replacement": (
        "their update scaled up to replace the model",
        " (boost {boost})",
    ),
    # transforms
    "identity": ("as they are",),
    "clip": ("clipped to L2 norm {max_norm}",),
    "gaussian_noise": ("with Gaussian noise of standard deviation {stddev} added",),
    "worker_momentum": ("replaced by the client's momentum (decay {decay})",),
    "qsgd": ("quantised by QSGD to {levels} levels", ", {per_leaf:leaf by leaf}"),
    "stochastic_levels": (
        "rounded at random to {levels} levels between the extremes",
        ", {per_leaf:leaf by leaf}",
    ),
    "scaled_sign": ("reduced to signs and one scale", ", {per_leaf:leaf by leaf}"),
    "ternary": ("made ternary at random (TernGrad)", ", {per_leaf:leaf by leaf}"),
    "sparse_ternary": (
        "reduced to the signs of the {k:kept} largest coordinates",
        ", {per_leaf:leaf by leaf}",
    ),
    "top_k": ("reduced to the {k:kept} largest coordinates", ", {per_leaf:leaf by leaf}"),
    "random_k": (
        "reduced to {k:kept} random coordinates",
        ", {unbiased:scaled up to be unbiased}",
        ", {per_leaf:leaf by leaf}",
    ),
    "rotated": ("rotated at random, {inner}, rotated back",),
    "drive": (
        "sent by DRIVE, one bit a coordinate after a random rotation",
        ", {unbiased:unbiased}",
        ", {per_leaf:leaf by leaf}",
    ),
    "powersgd": ("sent as a matrix of rank {rank} (PowerSGD)",),
    "error_feedback": ("with error feedback {inner}",),
    "ef21": ("sent as a change {inner} (EF21)",),
    "noisy_codes": (
        "clipped to L2 norm {clip}, rotated, rounded to a grid and given discrete Gaussian noise "
        "of standard deviation {stddev} by each client",
    ),
    "of_direction": ("{uplink}",),
    # time
    "clocked": (
        "{sampler}",
        "; the first {keep} to arrive",
        ", those who are there after {deadline:finite} seconds",
        " (when {available})",
        " ({latency})",
    ),
    "edge_clocked": (
        "{sampler}, each edge by its own clock",
        ", at most {deadline:finite} seconds a round",
        " ({latency})",
    ),
    "in_flight": (
        "the next {buffer} to arrive of {concurrency} clients in flight",
        " (asked when {available})",
        ", given up after {timeout:finite} seconds",
        " ({latency})",
    ),
    "undiscounted": ("1, whatever its staleness",),
    "polynomial": ("(1 + staleness) ** -{exponent}",),
    "hinge": ("1 up to a staleness of {free}, then 1 / ({slope} * (staleness - {free}) + 1)",),
    "latency": (
        "simulated seconds",
        "; a local step takes {compute}",
        "; {overhead} beside the work",
        "; downloads at {download} bits a second",
        "; uploads at {upload} bits a second",
    ),
    "failing": ("{inner}; a message is lost with probability {rate}",),
    "constant": ("{value}",),
    "exponential": ("exponential with mean {mean}",),
    "half_normal": ("half-normal with scale {scale}",),
    "log_normal": ("log-normal with median {median} and sigma {sigma}",),
    "pareto": ("Pareto from {minimum} on with shape {shape}",),
    "of_device": ("{inner}, drawn once for each client",),
    "per_client": ("a number for each client",),
    "trace_latency": ("simulated seconds of measured devices, {batch_size} examples a step",),
    "trace_availability": ("a client's device was idle and charged, by a trace",),
    "day_and_night": ("each client is there for {awake} of a day, in {zones} time zones",),
    # weightings
    "inverse_variance": ("the inverse of a client's variance, floor {floor}",),
}
"""By factory; a segment is used where all that it names is known and neither None nor False."""

CHAINED = ("chain",)


def phrase(value: Any) -> str:
    """A part in words.

    Args:
      value: a sampler, an aggregator, a transform, an attack, an optimizer, or a setting.

    Returns:
      A phrase without full stop.

    Example:
      >>> import fedjax_lite as fl
      >>> phrase(fl.dropout(fl.uniform(5), 0.3))
      '5 clients, uniformly without replacement; each of them drops out with probability 0.3'
      >>> phrase(fl.chain(fl.clip(1.0), fl.error_feedback(fl.top_k(0.01))))
      'clipped to L2 norm 1, then with error feedback reduced to the 1% largest coordinates'
    """
    if is_optimizer(value):
        return read_optimizer(value).words
    if not is_part(value):
        return figure(value)
    if not hasattr(value, "_fields"):
        return ", then ".join(phrase(part) for part in value)
    piece = read(value)
    if piece.name in CHAINED and not piece.own:
        return ", then ".join(map(phrase, piece.arguments["transforms"])) or "as they are"
    if piece.own:
        return own_words(piece)
    segments = WORDS.get(piece.name)
    return filled(segments, piece) if segments else plain_words(piece)


def filled(segments: Segments, piece: Piece) -> str:
    """The segments whose names are all known.

    Example:
      >>> import fedjax_lite as fl
      >>> filled(("a clip to {max_norm}", ", {nothing}"), read(fl.clip(2.0)))
      'a clip to 2'
    """
    grid = piece.settings.get("grid")
    agreed = vars(grid) if dataclasses.is_dataclass(grid) else {}
    known: dict[str, Any] = {**agreed, **piece.arguments}
    text = ""
    for i, segment in enumerate(segments):
        fields = re.findall(r"\{(\w+)(?::([^}]*))?\}", segment)
        if any(_silent(known.get(name), form) for name, form in fields):
            if i == 0:
                return plain_words(piece)
            continue
        for name, form in fields:
            words = _formed(known[name], form)
            segment = segment.replace(f"{{{name}:{form}}}" if form else f"{{{name}}}", words)
        text += segment
    return text


def plain_words(piece: Piece) -> str:
    """A factory's name and settings, where there are no better words.

    Example:
      >>> import fedjax_lite as fl
      >>> plain_words(read(fl.privacy.once_an_epoch(7, 3)))
      'once_an_epoch (num_clients 7, cohort_size 3, seed 0)'
    """
    shown = [
        f"{name} {figure(value)}"
        for name, value in piece.settings.items()
        if value is not None and name not in ("loss", "plan") and not _ours(value)
    ]
    shown += [f"{name}: {phrase(part)}" for name, part in piece.parts.items()]
    return f"{piece.name} ({', '.join(shown)})" if shown else piece.name


def own_words(piece: Piece) -> str:
    """A part that was made outside the package.

    Example:
      >>> own_words(Piece("halve", "script", {"times": 2}, None, True))
      'your own `halve` (script) with times 2'
    """
    name = f"your own `{piece.name}`" if piece.name else "your own function"
    shown = [f"{k} {figure(v)}" for k, v in piece.settings.items() if k not in ("loss", "plan")]
    around = "; ".join(phrase(part) for part in piece.parts.values() if not _is_model(part))
    words = f"{name} ({piece.module})" + (f" with {', '.join(shown)}" if shown else "")
    return words + (f" around {around}" if around else "")


def paragraph(label: str, text: str, *, width: int = 92) -> str:
    """A labelled sentence, wrapped, with a hanging indent.

    Example:
      >>> paragraph("Sampling", "each round every client")
      '  Sampling: each round every client.'
    """
    return textwrap.fill(
        f"{label}: {text}.",
        width=width,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def weighting_words(weighting: Any) -> str:
    """What a message weighs.

    Example:
      >>> weighting_words("examples"), weighting_words("uniform")
      ('its number of examples', '1')
    """
    if isinstance(weighting, str):
        return {"examples": "its number of examples", "uniform": "1"}.get(weighting, weighting)
    if (note := maker_of(weighting)) is not None and note.name in WORDS and is_ours(note.module):
        return filled(WORDS[note.name], read(weighting))
    return function_words(weighting)


def _silent(value: Any, form: str) -> bool:
    if form == "finite" and isinstance(value, float) and math.isinf(value):
        return True
    return value is None or value is False or (form == "many" and value == 1)


def _formed(value: Any, form: str) -> str:
    if form in ("many", "finite"):
        return figure(value)
    if form == "kept":
        return f"{100 * value:g}%" if isinstance(value, float) else figure(value)
    if form == "ids":
        return f"{len(value)} of them" if len(value) > 5 else f"ids {figure(list(value))}"
    return form or phrase(value)


def _ours(value: Any) -> bool:
    """Whether this is a function of the package's own: how a factory works, not a setting."""
    return callable(value) and is_ours(getattr(value, "__module__", ""))


def _is_model(part: Any) -> bool:
    return type(part).__name__ == "Model"
