"""Loss curves of training runs, read from their folders."""

from collections.abc import Sequence
from pathlib import Path

from moebench.records.training import TrainingManifest, read_curve, read_training
from moebench.report.pareto.entries import Curve


def training_curves(folders: Sequence[Path]) -> list[Curve]:
    """A curve for each training run's folder; one without a point has none."""
    manifests = [read_training(folder) for folder in folders]
    titles = curve_titles(manifests)
    result = []
    for folder, manifest, title in zip(folders, manifests, titles, strict=True):
        points = read_curve(folder)
        checks = tuple((p.tokens, p.validation_loss) for p in points if p.validation_loss)
        if points:
            tokens = tuple(point.tokens for point in points)
            losses = tuple(point.metrics["loss"] for point in points)
            result.append(Curve(title, manifest.seed, tokens, losses, checks))
    return result


def curve_titles(manifests: Sequence[TrainingManifest]) -> list[str]:
    """What was trained: the recipe, with the options that differ between its trainings."""
    titles = []
    for manifest in manifests:
        same = [other.options for other in manifests if other.recipe == manifest.recipe]
        options = (
            f"{name.replace('_', ' ')} {value}"
            for name, value in manifest.options.items()
            if value != "" and any(other.get(name) != value for other in same)
        )
        titles.append(", ".join([manifest.recipe, *options]))
    return titles
