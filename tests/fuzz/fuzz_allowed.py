"""Replaced values that can be meant, and so are accepted, each kind of them with a reason."""

from __future__ import annotations

import re
from typing import NamedTuple

from fedjax_lite.checks.kinds import INFINITE, UNBOUNDED


class Allowance(NamedTuple):
    """Values that some arguments may take."""

    why: str
    kinds: str
    """Names of `fuzz_values.VALUES`, split by commas."""
    annotation: str = ""
    """What the argument's annotation must hold, a regular expression."""
    names: str = ""
    """Which arguments, a regular expression for ``callable(argument)`` as a whole."""


NUMBERS = (
    "true, zero, minus one, negative, fraction, nan, infinity, huge int, huge float, numpy int, "
    "numpy float, complex, empty list, list of nan, matrix, array of nan, empty array, traced"
)
ALLOWANCES = (
    Allowance("left out", "none", r"None|slot"),
    Allowance("one of the two that a switch can be", "true", r"\bbool\b"),
    Allowance("zero is none of it, 1.5 and a large number are numbers, however many",
              "zero, fraction, huge int, huge float", r"\bfloat\b|Rate|Strength"),
    Allowance("hyper-parameters are traced in sweeps", "traced", r"\bfloat\b|Rate|Strength"),
    Allowance("infinity says that there is no bound", "infinity", r"\bfloat\b",
              rf".*\(({'|'.join(sorted(INFINITE))})\)"),
    Allowance("what is measured, moved or chosen may lie below zero",
              "minus one, negative, numpy int", r"\bfloat\b",
              r".*\.to_target\(target\)|.*patch_trigger\(value\)|alie\(z\)|term\(tilt\)|"
              r"matching\.pfnm\(prior_bias\)"),
    Allowance("a mean is any number", "true, zero, minus one, negative, fraction, huge int, "
              "numpy int, traced", r"Any", r"matching\.pfnm_atoms\(prior_mean\)"),
    Allowance("a count from zero on, a class, a client, a seed", "zero", r"\bint\b",
              r".*\((seed|rotation_seed|target|client|client_id|min_size|num_byzantine|iterations|crop|size|"
              r"successes|correct|true_positives|false_positives|num_rounds|steps|round|length|"
              r"cohort_size|cohort_examples|secret|at|x|row|column|num_clients|"
              r"capacity|index|known|positive|num_canaries|bottleneck_size|retries)\)"),
    Allowance("Python's integers are as large as they are", "huge int", r"\bint\b",
              rf".*\(({'|'.join(sorted(UNBOUNDED))})\)"),
    Allowance("rows and columns from the end; any number modulo a prime; ids only order masks",
              "minus one, numpy int", r"\bint\b",
              r".*patch_trigger\((row|column)\)|crypto\.(lagrange_weights\(at\)|polynomial\(x\)|"
              r"add_masks\(client\))"),
    Allowance("a function is asked when it is needed", "function",
              r"Callable|\bLoss\b|LossFn|Rate|Rule|Factory|Staleness|Simulation|Weighting|ClientOptimizer|Counts|Amount|Fisher|Measure|"
              r"Any",
              r".*\((loss|init|apply|init_state|select|check|client_optimizer|counts|rule|"
              r"simulate|weighting|.*learning_rate|epochs|steps|optimizer|group_by|factory|make|"
              r"is_local|is_frozen|predict|fisher|adapt|layers|wrap|mechanism|latency|staleness|cloud|"
              r"schedule|combine|measure)\)|.*power_of_choice\(model\)|Plan\(limit\)"),
    Allowance("seconds are numbers, however many, and may be traced",
              "zero, fraction, huge int, huge float, traced", r"Any",
              r".*in_time\((step_seconds|other_seconds)\)"),
    Allowance("a network without hidden layers: the plain mean", "empty list, empty array",
              r"Layer", r".*\(layers\)"),
    Allowance("a matrix is what is asked for", "matrix", r"Any", r"matching\.assignment\(costs\)"),
    Allowance("amounts of work may be traced", "traced", r"Amount"),
    Allowance("any words name things", "string, list of strings, array of strings", r"\bstr\b"),
    Allowance("texts and labels may be empty", "empty string", r"^str( \| None)?( = None)?$",
              r".*\((title|command|dataset|metric|x|unit|name|kind|what)\)"),
    Allowance("the clients' own training data, the default", "empty string", r"str",
              r"fedrep\(head_data\)"),
    Allowance("another key", "key", r"Key"),
    Allowance("other bytes", "bytes", r"bytes"),
    Allowance("a dict of anything", "dict", r"Mapping|^dict\[str, Any\]$"),
    Allowance("parameters, messages and rows are trees of any numbers, NaN where training diverged",
              NUMBERS + ", dict, key, none", r"Params|PyTree"),
    Allowance("none of them: nothing is done for nobody", "empty list, empty array",
              r"Sequence|Iterable",
              r".*\((own|clients|runs|paths|fprs|epsilons|features|hidden|rng_names|coefficients|"
              r"points|config_may_change|group_by|missing)\)"),
    Allowance("ids are any words, and a party may know nobody",
              "empty list, empty array, list of strings, array of strings", r"Sequence\[Id\]"),
    Allowance("chosen inside of a program", "traced", r"Array", r"byzantine\(clients\)"),
    Allowance("losses of any size, NaN where training diverged", NUMBERS, r"ndarray",
              r".*confidence_logit\(losses\)"),
    Allowance("measured values, NaN where training diverged",
              "list of nan, array of nan, matrix", r"Any|Array|Sequence\[float\]|ndarray",
              r"report\..*\((values|counts)\)|.*gaussian_(estimate|lower_bound)\((present|absent)\)|"
              r".*infer_label\(bias_update\)|streamed_bytes\(sizes\)|.*mpc_mean\(values\)|"
              r".*combine_array\(shares\)|data\.quadratics\(b\)"),
    Allowance("NaN counts as 0 and what is too large is clipped, as the page says", NUMBERS,
              r"Any", r"crypto\.encode\(values\)"),
    Allowance("the ring's numbers", "zero, numpy int, minus one", r"Any|ndarray|Array",
              r"crypto\.\w+\((total|count|vector|own|values|shares)\)|.*flip_labels\(labels\)|"
              r"shuffle_index\((index|size)\)|.*direction\(index\)|.*counted\(mask\)"),
    Allowance("a number of any size, known when the program runs", "fraction, huge int, huge float,"
              "zero, traced", r"Any", r".*\((clip|noise_multiplier|fraction)\)"),
    Allowance("the largest magnitude is any number above zero that float32 holds",
              "fraction, huge int, traced", r"Any", r"crypto\.(encode|decode_mean)\(max_abs\)"),
    Allowance("a round's number may be Python's", "zero", r"Array",
              r"engine\.train_clients\(round\)"),
    Allowance("before the first task nothing is transferred to it: its score is not looked at",
              "list of nan, array of nan", r"Any", r"lifelong\.forward_transfer\(untrained\)"),
    Allowance("the shape of one number, or of none", "zero, empty list, empty array", r"Any",
              r".*\(shape\)|attacks\.backdoor\(clients\)|label_flip\(clients\)"),
    Allowance("a batch of any numbers shows the shape", "list of nan, matrix, array of nan, "
              "empty array, empty list", r"Any", r".*(from|cut)_linen\(example_x\)"),
    Allowance("a layer of a model without examples", "empty array", r"Array",
              r".*linear_inputs?\(kernel_update\)|.*bottleneck\(x\)"),
    Allowance("pixels on each side", "zero", r"Padding"),
    Allowance("which examples, known when the program runs", "traced", r"Any|Array",
              r".*\((mask|index|size)\)"),
)  # fmt: skip


def is_allowed(full: str, argument: str, kind: str, annotation: str) -> str:
    """Why a callable may take this value; "" where it may not.

    Args:
      full: the callable's name.
      argument: the argument's.
      kind: of the value, a key of `fuzz_values.VALUES`.
      annotation: the argument's, as it is written, and " = None" where it may be left out; "slot"
        for those behind ``**slots``.
    """
    for allowance in ALLOWANCES:
        if (
            kind in re.split(r",\s*", allowance.kinds)
            and re.search(allowance.annotation, annotation)
            and (not allowance.names or re.fullmatch(allowance.names, f"{full}({argument})"))
        ):
            return allowance.why
    return ""
