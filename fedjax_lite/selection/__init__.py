"""Choosing clients: samplers beyond the uniform one, and choice by what clients measure.

Samplers stand where `fedjax_lite.uniform` stands, ``sampler=fl.selection.cyclic(10)``; those that
learn (`active`, `oort`) see what the clients of their last cohorts reported. Two choices need a
first pass over the cohort and take a whole algorithm: `power_of_choice` and `optimal`. `unbiased`
weighs messages by the inverse of how often their senders are drawn. Clients that stop midway are a
limit of the plan (`interrupted`, `in_time`) where their work is kept, and `lost_midway` where not.
"""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.selection.active import active
    from fedjax_lite.selection.at_least_once import at_least_once
    from fedjax_lite.selection.available import available
    from fedjax_lite.selection.counted import counted
    from fedjax_lite.selection.cyclic import cyclic
    from fedjax_lite.selection.importance import importance
    from fedjax_lite.selection.interrupted import in_time, interrupted, lost_midway
    from fedjax_lite.selection.multinomial import multinomial
    from fedjax_lite.selection.oort import oort
    from fedjax_lite.selection.optimal import optimal
    from fedjax_lite.selection.power_of_choice import power_of_choice
    from fedjax_lite.selection.stratified import stratified
    from fedjax_lite.selection.unbiased import unbiased

__all__ = [
    "active",
    "at_least_once",
    "available",
    "counted",
    "cyclic",
    "importance",
    "in_time",
    "interrupted",
    "lost_midway",
    "multinomial",
    "oort",
    "optimal",
    "power_of_choice",
    "stratified",
    "unbiased",
]

load_when_asked(__name__)
