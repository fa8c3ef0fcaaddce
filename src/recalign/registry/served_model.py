"""The MLflow model ("models from code"): MLflow copies this file beside the package and runs it where the model serves.

Input: columns history (a list of titles or item ids, oldest first), and, if wanted, candidates (likewise) and k.
Output: a ranking a row, as `Service.answer` describes it.
"""

import math
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types.schema import AnyType, ColSpec, Schema

if TYPE_CHECKING:
    from recalign.registry.serving import Query

PACKAGE = "package"  # name of the artifact that holds what `registry.package` wrote

OUTPUTS = ("items", "preference", "inferred_by", "evidence", "unknown")
SIGNATURE = ModelSignature(  # lists that mix titles and ids have no type in MLflow; `Query` checks them
    inputs=Schema(
        [
            ColSpec(AnyType(), "history"),
            ColSpec(AnyType(), "candidates", required=False),
            ColSpec(AnyType(), "k", required=False),
        ]
    ),
    outputs=Schema([ColSpec(AnyType(), name) for name in OUTPUTS]),
)


class ServedModel(PythonModel):
    """A registered adapter on its base."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the package; the base comes from RECALIGN_BASE, data/models/base, or is fetched, and is checked."""
        from pathlib import Path

        from recalign.registry.serving import Service

        self.service = Service.load(Path(context.artifacts[PACKAGE]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """One ranking a row, all of them together. What a caller can mend is answered as HTTP 400 with one line."""
        from pydantic import ValidationError

        from recalign.errors import RecalignError
        from recalign.registry.serving import Query

        queries = []
        for number, row in enumerate(model_input.to_dict("records")):
            try:
                queries.append(Query(**_given(row)))
            except ValidationError as error:
                first = error.errors()[0]
                raise _refused(number, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        try:
            return self.service.answers(queries)
        except RecalignError:
            return [self._alone(number, query) for number, query in enumerate(queries)]

    def _alone(self, number: int, query: "Query") -> dict[str, Any]:
        """The answer to one row, so that an error names the row."""
        from recalign.errors import RecalignError

        try:
            return self.service.answer(query)
        except RecalignError as error:
            raise _refused(number, str(error)) from None


def _given(row: dict[str, Any]) -> dict[str, Any]:
    """The fields that a row has: pandas fills what it lacks with NaN, turns whole numbers beside it into floats, and
    lists may arrive as arrays."""
    given = {}
    for name, value in row.items():
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        whole = isinstance(value, float) and value.is_integer()
        given[name] = int(value) if whole else value.tolist() if hasattr(value, "tolist") else value
    return given


def _refused(row: int, reason: str) -> MlflowException:
    return MlflowException(f"row {row}: {reason}", error_code=INVALID_PARAMETER_VALUE)


set_model(ServedModel())
