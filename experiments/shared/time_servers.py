"""The servers that `time_to_accuracy.py` compares, and how figures draw each: colour, dashes."""

SERVERS = {
    "FedAvg": ("#666666", ":"),
    "over-selection": ("#E69F00", "--"),
    "deadline": ("#009E73", "-."),
    "partial work": ("#0072B2", "-."),
    "power-of-choice": ("#CC79A7", "--"),
    "hierarchy": ("#000000", "--"),
    "FedAsync": ("#56B4E9", "-"),
    "FedBuff": ("#D55E00", "-"),
}
