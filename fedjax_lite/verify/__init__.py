"""Known answers as a product: ``python -m fedjax_lite.verify [name ...]`` and `check`.

Techniques of the library run against closed forms on tiny problems (`run`); an algorithm of one's
own is put through laws and reductions, and told where it converges (`check`).

>>> from fedjax_lite import verify
>>> verify.print_records(verify.run(["clip"])[1:2])
technique  check            expected    got         error  verdict
clip       inside the ball  (0.3, 0.4)  (0.3, 0.4)  0      PASS
1 passed, 0 failed
"""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.verify.command import main, run, technique_names
    from fedjax_lite.verify.own import check
    from fedjax_lite.verify.records import Check, Record, run_check, run_checks
    from fedjax_lite.verify.table import print_records

__all__ = [
    "Check",
    "Record",
    "check",
    "main",
    "print_records",
    "run",
    "run_check",
    "run_checks",
    "technique_names",
]

load_when_asked(__name__)
