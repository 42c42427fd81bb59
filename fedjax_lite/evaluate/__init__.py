"""Evaluation: a model on common examples, every client on its own, and how fair the result is."""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.evaluate.client_evaluator import client_evaluator
    from fedjax_lite.evaluate.clients import evaluate_clients, evaluate_personal
    from fedjax_lite.evaluate.cluster_purity import cluster_purity
    from fedjax_lite.evaluate.fairness import summarize_clients
    from fedjax_lite.evaluate.fine_tuned import FineTuned, fine_tuned
    from fedjax_lite.evaluate.fisher import fisher_information
    from fedjax_lite.evaluate.gaps import group_gaps
    from fedjax_lite.evaluate.known import results_of, scored_by
    from fedjax_lite.evaluate.scores import evaluator
    from fedjax_lite.evaluate.side_by_side import side_by_side
    from fedjax_lite.round.own_models import models_of

__all__ = [
    "cluster_purity",
    "FineTuned",
    "client_evaluator",
    "evaluate_clients",
    "evaluate_personal",
    "evaluator",
    "fine_tuned",
    "group_gaps",
    "fisher_information",
    "models_of",
    "results_of",
    "scored_by",
    "side_by_side",
    "summarize_clients",
]

load_when_asked(__name__)
