"""MimeLite: the server's momentum in local steps, gradients uncorrected; beta = 0 is FedAvg."""

from __future__ import annotations

import functools

from fedjax_lite.verify.records import Check
from fedjax_lite.verify.techniques.mime import loop, mimed
from fedjax_lite.verify.testbeds import averaging, trajectory


def checks() -> list[Check]:
    """FedAvg without momentum; with it, a limit of its own beside the optimum."""
    run = functools.cache(lambda beta: trajectory(mimed(beta, lite=True), 900))
    return [
        Check("beta=0 = FedAvg", averaging(3), lambda: run(0.0)[:3]),
        Check(
            "beta=.9: three rounds",
            loop(3, 0.9, lite=True),
            lambda: run(0.9)[:3],
        ),
        Check(
            "beta=.9: limit",
            loop(2000, 0.9, lite=True)[-1],
            lambda: run(0.9)[-1],
        ),
    ]
