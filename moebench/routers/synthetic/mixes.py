"""Mixes: stated distributions of the number of experts that a token runs.

    fixed       the model's own k
    k=8         8 experts
    geometric   geometric on 1 to 8, mean 2: a quarter of the experts of k=8
    ada-k       geometric on 1 to 8, with the mean that the Ada-K paper reports for Mixtral-8x7B
    nulls       2 of 8 slots on average, the others null experts, as AdaMoE with many null experts

Experts are uniform: mixes differ in the number of assignments only.
"""

from moebench.routers.ada_k.policy import AdaK

MIXES = ("fixed", "k=8", "geometric", "ada-k", "nulls")
MEAN_K = {"geometric": 2.0, "ada-k": AdaK.published["mixtral-8x7b"].mean_k}
"""Mean experts per token of the mixes that are geometric on 1 to `SLOTS` experts."""
SLOTS = 8
"""Most experts of a token in every mix but "fixed"."""
NULLS_K = 2
"""Mean experts per token of "nulls"."""
COMPARED_WITH = {"geometric": "k=8", "ada-k": "fixed", "nulls": "fixed"}
"""The mix that each mix of varying k is compared with."""
