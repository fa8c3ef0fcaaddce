"""The report says what the gate will ask, and where its verdict will be."""

from typing import Any

from recalign.params.load import parse_params
from recalign.params.registry import GuardsParams
from recalign.report.sections import WATCHED, gate_section


def test_every_guard_of_the_params_has_a_row_with_its_bound(tree: dict[str, Any]) -> None:
    """A new guard fails here until the report knows it."""
    assert WATCHED.keys() == GuardsParams.model_fields.keys() - {"error"}
    tree["registry"]["guards"] |= {"user_cold": 0.03, "latency_ratio": 4.0, "mgu": None}
    tree["registry"]["metric"] = "mrr"
    page = gate_section(parse_params(tree).registry)
    for said in ("MRR of users with short histories", "may lose 0.03", "at most 4 times the champion", "not looked at"):
        assert said in page
    assert page.count("not looked at") == 1
    assert "reports/gate.html" in page


def test_without_a_registry_nothing_is_said() -> None:
    assert gate_section(None) == ""
