"""What the gate will ask of a registration: its bounds, which are known here, and where its verdict will be."""

from recalign.common import html as page
from recalign.evaluation.metrics import LABELS
from recalign.params.registry import RegistryParams

WATCHED = {  # key of registry.guards: what it watches, how its bound is said
    "user_cold": ("{metric} of users with short histories", "may lose {bound:g}"),
    "item_cold": ("{metric} of new items", "may lose {bound:g}"),
    "popularity_lift": ("popularity lift of its lists", "may add {bound:g}"),
    "mgu": ("MGU of its lists", "may add {bound:g}"),
    "dgu": ("DGU of its lists", "may add {bound:g}"),
    "valid_answers": ("share of valid generated answers", "may lose {bound:g}"),
    "injection_lift": ("lift by a text in a title", "may add {bound:g}"),
    "latency_ratio": ("seconds per answer", "at most {bound:g} times the champion's"),
    "megabytes_ratio": ("megabytes of weights", "at most {bound:g} times the champion's"),
}


def gate_section(registry: RegistryParams | None) -> str:
    """The guards and their bounds; empty where they are not told."""
    if registry is None:
        return ""
    metric = LABELS[registry.metric]
    rows = [("leak probes", f"{metric} must be above what the candidate lists give away")]
    for key, (what, said) in WATCHED.items():
        bound = getattr(registry.guards, key)
        rows.append((what.format(metric=metric), "not looked at" if bound is None else said.format(bound=bound)))
    note = "Against the present champion; a guard is broken only where its whole interval lies beyond the bound."
    told = page.paragraph(
        "This page was written before any registration. What the gate said of the last one is in reports/gate.html, "
        "which 'recalign register' writes, and with the version in MLflow."
    )
    return page.section("What the gate will ask", page.table(["guard", "bound"], rows, note), told)
