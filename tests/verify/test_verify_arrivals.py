"""`python -m fedjax_lite.verify arrivals` fails where simulated time has a planted defect."""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lite.verify import records
from fedjax_lite.verify.techniques import arrivals

ASYNCHRONOUS, CLOCK, LATENCY, QUEUE = (
    importlib.import_module(f"fedjax_lite.arrivals.{name}")
    for name in ("asynchronous", "clock", "latency", "queue")
)
TIES, SINGLE = "FedBuff, equal times: eight flushes", "FedAsync: twenty messages"
SLOWEST, FIRST = "a round waits for the slowest", "the first two of three"
DEADLINE, HINGE = "a deadline: half a message was sent for nothing", "hinge"


def last_sent_first(patch):
    """Of equal times the last sent comes first."""
    good = QUEUE.next_to_arrive
    patch.setattr(QUEUE, "next_to_arrive", lambda s: good(s._replace(turn=-s.turn)))


def downloads_before_the_flush(patch):
    """Whoever finds room downloads at once: a model that is about to be old."""
    patch.setattr(QUEUE, "may_download", lambda slots: jnp.array(True))


def a_version_older(patch):
    """Staleness is off by one."""
    good = ASYNCHRONOUS._downloaded

    def bad(state, cohort):
        place, stale = good(state, cohort)
        return place, stale + 1

    patch.setattr(ASYNCHRONOUS, "_downloaded", bad)


def divided_by_the_weights(patch):
    """A weighted mean: a buffer of old messages moves the model as far as one of new ones."""

    def bad(inner, weights, broadcast, places, *, anchored):
        def add(acc, messages, slots, mask):
            weight = jnp.take(weights, slots, mode="clip")
            return inner.add(acc, messages._replace(weight=weight), slots, mask)

        return inner._replace(add=add)

    patch.setattr(ASYNCHRONOUS, "discounted", bad)


def trains_from_the_newest(patch):
    """Nobody's model is old when training begins."""
    good = ASYNCHRONOUS.from_versions

    def bad(client):
        made = good(client)
        return made._replace(step=lambda down, carry, batch: (
            carry[0], client.step(down.downloaded, carry[1], batch)),
            start=lambda key, row, down, info: (
                info.found["place"],
                client.start(key, row, down.downloaded, info._replace(found=()))),
        )  # fmt: skip

    patch.setattr(ASYNCHRONOUS, "from_versions", bad)


def never_anchored(patch):
    """FedAsync mixes in the change since the download, not the model."""
    good = ASYNCHRONOUS.discounted
    patch.setattr(ASYNCHRONOUS, "discounted", lambda *args, anchored: good(*args, anchored=False)
    )  # fmt: skip


def uploads_are_free(patch):
    patch.setattr(LATENCY.Seconds, "total", property(lambda s: s.download + s.compute))


def bills_whole_messages(patch):
    """The late are billed for all that they would have sent."""
    patch.setattr(CLOCK, "_sent_by", lambda lasted, parts: jnp.ones_like(parts.upload))


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("defect", "caught", "right"),
    [
        (last_sent_first, (TIES,), (FIRST,)),
        (downloads_before_the_flush, (TIES,), (FIRST,)),
        (a_version_older, (TIES,), (HINGE,)),
        (divided_by_the_weights, (TIES,), (HINGE,)),
        (trains_from_the_newest, (TIES,), (HINGE,)),
        (never_anchored, (SINGLE,), (HINGE,)),
        (uploads_are_free, (SLOWEST,), (HINGE,)),
        (bills_whole_messages, (DEADLINE,), (SLOWEST,)),
    ],
)
def test_planted_defects(monkeypatch, defect, caught, right):
    defect(monkeypatch)
    chosen = [check for check in arrivals.checks() if check.name in caught + right]
    assert len(chosen) == len(caught) + len(right)
    found = records.run_checks("arrivals", chosen)
    assert not [record.got for record in found if "Error" in record.got]
    verdicts = {record.check: record.verdict for record in found}
    assert verdicts == dict.fromkeys(caught, "FAIL") | dict.fromkeys(right, "PASS")


def test_the_loop_tells_its_worlds_apart():
    """A constant could not pass: models, senders and staleness all move."""
    ties = arrivals.by_heap(arrivals.World(arrivals.WHOLE, 4, 3), 6)
    uneven = arrivals.by_heap(arrivals.World(arrivals.UNEVEN, 4, 3), 6)
    late = ties[:, 5:]
    assert late.max() >= 2
    assert len(np.unique(late)) >= 3
    assert np.abs(ties[:, 1] - uneven[:, 1]).max() > 0.1
    assert (ties[:, 2:5] != uneven[:, 2:5]).any()
