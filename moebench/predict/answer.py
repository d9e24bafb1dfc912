"""The answer of `python -m moebench.predict`: speedups, break-evens or claims, as text or JSON."""

import argparse

from moebench import terminal
from moebench.predict.comparison_text import break_even_text, comparison_text
from moebench.predict.document import document, speedup_document
from moebench.predict.learned import learned_caveats, with_caveats
from moebench.predict.options import (
    BEST,
    deployment_of,
    points_of,
    refuse_beside,
    routing_of,
    sizes_range,
)
from moebench.predict.serving.overlap import best_chunks
from moebench.predict.serving.speedup import speedups
from moebench.predict.text import case_text, figure_texts, labels_of
from moebench.predict.traced import trace_caveats, traced_model
from moebench.predict.traffic import under_independence, under_typical_skew, with_traffic
from moebench.spec.stated import stated_differences

UNSERVED = {"batch", "context", "phase", "level", "break_even", "plot", "cached_prefix"}
"""Options that a served load has no use for."""


def answer(options: argparse.Namespace, defaults: argparse.Namespace) -> str:
    """Text or JSON that answers a command line; `defaults` are the options of an empty one."""
    given = {name for name in vars(options) if vars(options)[name] != vars(defaults)[name]}
    if options.claims:
        from moebench.predict.claims.answer import claims_text

        others = given - {"claims", "json", "plot"}
        refuse_beside("--claims", "says what each claim is of", others)
        return claims_text(as_json=options.json, plot=options.plot)
    for name in ("describe", "list_models", "list_hardware"):
        if getattr(options, name):
            from moebench.predict import models

            flag = f"--{name.replace('_', '-')}"
            refuse_beside(flag, "prices nothing", given - {name, "json", "model"})
            return models.answer(name, options.model or ["mixtral-8x7b"], as_json=options.json)
    if options.concurrency is not None:
        why = "asks for a served load of a whole model, of prompts and outputs of given lengths"
        refuse_beside("--concurrency", why, given & UNSERVED)
        options.level = "model"
    elif others := given & {"input", "output", "prefill_chunk"}:
        raise ValueError(f"--{min(others).replace('_', '-')}: only beside --concurrency")
    batches = sizes_range(
        options.concurrency or options.batch, "--concurrency" if options.concurrency else "--batch"
    )
    options.router = options.router or ["ada-k"]
    trace = traced_model(options)
    deployments = [
        with_traffic(deployment_of(options, model, hardware), options, batches)
        for model in options.model or [trace.header.model if trace else "mixtral-8x7b"]
        for hardware in options.hardware or ["h100-sxm"]
    ]
    if options.chunks == BEST:
        deployments = [best_chunks(one, max(batches)) for one in deployments]
    for model in dict.fromkeys(one.model for one in deployments):
        for sentence in stated_differences(model):
            terminal.say(f"warning: {sentence}")
    asked = [
        (one, router)
        for one in deployments
        for router in (["none"] if one.is_dense else options.router)
    ]
    learned = () if options.trace else points_of(options)
    if options.concurrency is not None:
        from moebench.predict.served_answer import served_answer

        for model in dict.fromkeys(one.model for one in deployments):
            for caveat in (each for one in learned for each in learned_caveats(one, model)):
                terminal.say(f"warning: {caveat.sentence}")
        found = (each for one, router in asked for each in trace_caveats(one, router, batches))
        for caveat in dict.fromkeys(found):
            terminal.say(f"warning: {caveat.sentence}")
        return served_answer(options, asked, batches)
    if options.break_even is not None:
        from moebench.predict.serving.break_even import break_even

        others = given & {"mean_k", "k_distribution", "operating_point", "plot"}
        refuse_beside("--break-even", "looks for the mean k", others)
        cells = [break_even(one, router, batches, options.break_even) for one, router in asked]
        if options.json:
            return document(break_even=[row for rows in cells for row in rows])
        return break_even_text(cells, deployments)
    if options.plot is not None:
        from moebench.report.figures.style import check_format, save

        check_format(options.plot)
    cases, typical, alone = [], [], []
    for deployment, router in asked:
        own, point = routing_of(options, router, deployment)
        caveats = (
            *(caveat for one in learned for caveat in learned_caveats(one, deployment.model)),
            *trace_caveats(deployment, own.name, batches),
        )
        cases.append(with_caveats(speedups(deployment, own, batches, point), caveats))
        typical.append(under_typical_skew(cases[-1], own, point))
        alone.append(under_independence(cases[-1], own, point))
    if options.plot is not None:
        from moebench.predict.figure import draw_forecasts

        labelled = dict(zip(labels_of(cases), cases, strict=True))
        figure = draw_forecasts(labelled, *figure_texts(cases))
        terminal.write_beside(lambda: save(figure, options.plot))
    if options.json:
        return speedup_document(cases, typical, alone)
    if len(cases) == 1:
        return case_text(cases[0], typical[0], alone[0])
    return comparison_text(cases, typical, alone)
