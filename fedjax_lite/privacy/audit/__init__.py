"""Empirical privacy: canary clients, and the epsilon that a run provably spent."""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.privacy.audit.bounds import (
        clopper_pearson,
        epsilon_from_counts,
        epsilon_from_scores,
        one_run_epsilon,
        one_run_p_value,
    )
    from fedjax_lite.privacy.audit.canaries import (
        canary_scores,
        canary_uplink,
        direction,
        plant,
        with_canaries,
    )
    from fedjax_lite.privacy.audit.gaussian import gaussian_estimate, gaussian_lower_bound, roc_mu
    from fedjax_lite.privacy.audit.one_run import (
        AuditFailed,
        AuditReport,
        audit,
        guess,
        judge,
    )

__all__ = [
    "AuditFailed",
    "AuditReport",
    "audit",
    "canary_scores",
    "canary_uplink",
    "clopper_pearson",
    "direction",
    "epsilon_from_counts",
    "epsilon_from_scores",
    "gaussian_estimate",
    "gaussian_lower_bound",
    "guess",
    "judge",
    "one_run_epsilon",
    "one_run_p_value",
    "plant",
    "roc_mu",
    "with_canaries",
]

load_when_asked(__name__)
