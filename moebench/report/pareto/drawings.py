"""The figures of a pareto run with their captions."""

from moebench.report.document import Picture
from moebench.report.pareto.entries import NEAREST, Shown
from moebench.report.pareto.table import predicted_cases
from moebench.report.pictures import Drawing, drawn
from moebench.units import slug

LOSS_AXIS = (
    "The loss axis is linear to ±0.005 and logarithmic beyond; grey: ±0.002 nats/byte. Bars: 95 % "
    "intervals, paired by window. A line joins the points of a router that none of its own beats "
    "in both."
)
NEVER_MIXED = "No measured time is in this figure."
OVER_MEAN = "Numbers: mean k; orange: more than the router's own mean, violet: less."


def pareto_pictures(shown: Shown) -> tuple[list[Picture], list[str]]:
    """Figures that the run allows, and for each of the others why it is missing."""
    # Importing matplotlib takes longer than everything else a report does.
    from moebench.report.figures import coloured, curves, pareto, use

    entries = shown.entries
    drawings: tuple[Drawing, ...] = (
        (
            "loss-by-k",
            "Loss against mean k",
            f"Test loss less that of the base (star) against routed experts a token. {LOSS_AXIS}",
            lambda: pareto.loss_against_k(entries),
        ),
        (
            "loss-by-time",
            "Loss against measured time",
            f"The same against measured time of a decode step over the base's. {LOSS_AXIS}",
            lambda: pareto.loss_against_time(entries),
        ),
        *(
            (
                f"loss-by-predicted-time-{slug(model)}",
                f"Loss against predicted time of {model}",
                "The same against time PREDICTED for other machines. Losses are those of the "
                f"trained model. {NEVER_MIXED} {LOSS_AXIS}",
                lambda model=model: pareto.loss_against_prediction(entries, model),
            )
            for model in dict.fromkeys(case.model for case in predicted_cases(entries))
        ),
        ("k-by-layer", "k by layer", f"{OVER_MEAN} {NEAREST}", lambda: use.k_by_layer(entries)),
        (
            "k-by-class",
            "k by class of token",
            f"Below each class its share of the tokens. {OVER_MEAN} {NEAREST}",
            lambda: use.k_by_class(entries),
        ),
        (
            "k-by-position",
            "k by position, and by the window's loss",
            "Left: equal parts of the window from its start. Right: windows in equal groups from "
            f"the lowest to the highest loss of the base. Means over layers. {NEAREST}",
            lambda: use.k_by_place(entries),
        ),
        (
            "k-by-byte",
            "Text coloured by k",
            "The same test text for each router; darker bytes ran more experts (mean over layers); "
            f"¶: end of a line. k-by-byte.html has the whole text. {NEAREST}",
            lambda: coloured.coloured_text(shown.texts),
        ),
        (
            "loss-curves",
            "Loss curves",
            "Training loss and validation loss; the axis is that after the first tenth.",
            lambda: curves.loss_curves(shown.curves),
        ),
        (
            "expert-load",
            "Expert load by layer",
            f"Assignments of each expert over those of an even load. {NEAREST}",
            lambda: use.expert_load(entries),
        ),
        (
            "distinct-experts",
            "Distinct experts against batch",
            "Left: experts that a decode step touches, mean over layers; dashed: expected if "
            "tokens were independent with the same marginals. Right: measured over expected. "
            f"{NEAREST}",
            lambda: use.distinct_experts(entries),
        ),
    )
    pictures, missing = drawn(drawings, shown.rests_on)
    if not predicted_cases(entries):
        missing.append("No figure “Loss against predicted time”: nothing was predicted.")
    return pictures, missing
