"""Valid arguments of what learns one task after the other."""

import functools
from typing import Any

from fuzz_world import DATA, KEY, MODEL, PARAMS, PLAN, SGD

import fedjax_lite as fl

OLD = fl.no_old_tasks(PARAMS)


@functools.cache
def remembering_state():
    """Of clients that have learnt nothing yet."""
    algo = fl.ewc(MODEL.loss, SGD, lam=0.5, plan=PLAN, sampler=fl.uniform(2))
    return algo.init(KEY, PARAMS, DATA)


LIFELONG_BY_NAME: dict[str, Any] = {
    "fisher": PARAMS,
    "lam": 0.5,
    "optimum": PARAMS,
    "predict": MODEL.predict,
}
LIFELONG: dict[str, dict[str, Any]] = {
    "ewc_penalty": {"old": OLD},
    "fisher_information": {"fisher": fl.empirical_fisher(MODEL.loss)},
    "remember": {"old": OLD},
    "with_old_tasks": {"state": remembering_state, "old": OLD},
}
LIFELONG_MADE = (remembering_state,)
