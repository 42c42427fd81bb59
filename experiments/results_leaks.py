"""Results of attacks on privacy: images read out of updates, members told from others."""

from __future__ import annotations

import numpy as np
from results_rows import Brief, Documents, Section, bullets, number, paragraphs, provenance, table


def leakage(documents: Documents) -> Section | None:
    """Gradient inversion and membership inference."""
    name = "leakage"
    if name not in documents:
        return None
    document, used = documents[name], documents[name]["settings"]
    command = "`python experiments/leakage.py`"
    psnr = {row["defence"]: float(np.mean(row["psnr"])) for row in document["reconstruction"]}
    images = [
        (
            row["defence"],
            number(psnr[row["defence"]], 1),
            number(max(row["psnr"]), 1),
            "-" if row["labels"] is None else f"{row['labels']} of {used['num_images']}",
        )
        for row in document["reconstruction"]
    ]
    members = [
        (
            row["training"],
            f"{number(100 * row['train_accuracy'], 1)} / {number(100 * row['test_accuracy'], 1)}",
            _auc(row["loss_auc"], row["loss_interval"]),
            _auc(row["lira_auc"], row["lira_interval"]),
            number(row["advantage"], 2),
            number(row["allowed_advantage"], 2),
        )
        for row in document["membership"]
    ]
    notes = [
        "No published run has this setting. PSNR in dB of images found from a client's update by "
        "Geiping et al.'s inversion (2020, arXiv:2003.14053) on a sigmoid LeNet; (mean image) is "
        "what guessing gives. A low figure says that this attack failed, not that the defence is "
        "safe: a guarantee is the accounted epsilon only. 99 stands for exact.",
        "Membership: area under the curve with 95 % intervals, of the loss attack (Yeom et al. "
        "2018, arXiv:1709.01604) and of LiRA (Carlini et al. 2021, arXiv:2112.03570); 0.5 is "
        "guessing. Allowed is the advantage that the accounted epsilon permits.",
        f"{document['dataset'].upper()}, {used['num_images']} images, {used['num_iterations']} "
        f"iterations; {used['num_members']} members, {used['num_rounds']} rounds, "
        f"{used['num_references']} reference models, one seed ({used['seed']}).",
        f"Command: {command}. {provenance(name, document)}",
    ]
    by_training = {row["training"]: row for row in document["membership"]}
    brief = []
    if {"none", "top 10 %", "clip, noise 0.01", "(mean image)"} <= set(psnr):
        what = (
            "images out of an update, PSNR in dB: undefended; top 10 % sent; clip and noise 0.01; "
            "guessing"
        )
        names = ("none", "top 10 %", "clip, noise 0.01", "(mean image)")
        here = "; ".join(number(psnr[name], 1) for name in names)
        brief.append(Brief(what, "-", here, command))
    private = next((row for t, row in by_training.items() if t.startswith("DP-FedAvg")), None)
    if "FedAvg" in by_training and private:
        what = f"members told from others by LiRA, AUC: FedAvg; {private['training']}"
        here = f"{by_training['FedAvg']['lira_auc']:.2f}; {private['lira_auc']:.2f}"
        brief.append(Brief(what, "-", here))
    text = paragraphs(
        table(("defence", "mean PSNR (dB)", "best (dB)", "labels right"), images),
        table(
            (
                "training",
                "train / test accuracy, %",
                "AUC, loss",
                "AUC, LiRA",
                "advantage",
                "allowed",
            ),
            members,
        ),
        bullets(notes),
    )
    return Section("Attacks on privacy", text, tuple(brief))


def _auc(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"
