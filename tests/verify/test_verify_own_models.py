"""Planted defects of personal methods are found by the checks named here, and only there."""

import numpy as np
import pytest

import fedjax_lite as fl
from fedjax_lite import verify
from fedjax_lite.verify import records
from fedjax_lite.verify.techniques import personal

END = "Ditto, pull=1: own models in the end"
STEPS = "Ditto, pull=1: own models after three steps"
GLOBAL = "Ditto: the global model = FedAvg"
SCALED, UNSCALED = (f"APFL, {what}: own part after a step" for what in ("mixing .5", "unscaled"))
REP, PER = "FedRep: heads, then the body", "FedPer: both at once"
DEFECTS = {
    "a pull that is lost": (
        "ditto", lambda *a, pull, **o: fl.ditto(*a, pull=0.0, **o), {STEPS, END}, {GLOBAL}
    ),
    "a gradient without its factor": (
        "apfl", lambda *a, **o: fl.apfl(*a, **{**o, "variant": "unscaled"}), {SCALED}, {UNSCALED}
    ),
    "head and body at once": ("fedrep", fl.fedper, {REP}, {PER}),
}  # fmt: skip


def test_the_numbers_are_the_published_ones():
    """KNOWN_ANSWERS 8, computed elsewhere."""
    expected = {check.name: check.expected for check in personal.checks()}
    np.testing.assert_allclose(expected["pFedMe: round 1, exact points"], 0.0648839477, atol=6e-11)
    np.testing.assert_allclose(expected[SCALED], [-0.025, 0.2])
    np.testing.assert_allclose(expected[UNSCALED], [-0.05, 0.4])


@pytest.mark.sample(2, of="all checks of a technique pass")
def test_all_hold():
    assert not [record for record in verify.run(["personal"]) if record.verdict != "PASS"]


@pytest.mark.sample(2)
@pytest.mark.parametrize("defect", DEFECTS)
def test_planted(defect, monkeypatch):
    name, planted, broken, sound = DEFECTS[defect]
    monkeypatch.setattr(personal, name, planted)
    chosen = [check for check in personal.checks() if check.name in broken | sound]
    found = {record.check: record for record in records.run_checks("personal", chosen)}
    assert found.keys() == broken | sound
    assert {check for check, record in found.items() if record.verdict == "FAIL"} == broken
    assert not [record.got for record in found.values() if "Error" in record.got]
