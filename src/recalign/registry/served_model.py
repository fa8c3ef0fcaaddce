"""The MLflow model ("models from code"): MLflow copies this file beside the package and runs it where the model serves.

Input: columns history (a list of titles, or of item ids as your log writes them, oldest first), and, if wanted,
candidates (likewise) and k. Another column is refused by its name, which is why the signature has no inputs: MLflow
would drop it without an answer. Output: a ranking a row, as `Service.answer` describes it.
"""

import logging
import math
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_model
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types.schema import AnyType, ColSpec, Schema

if TYPE_CHECKING:
    from recalign.registry.serving import Query

log = logging.getLogger(__name__)
SHOWN = 200  # characters of what came in, in an error
PACKAGE = "package"  # name of the artifact that holds what `registry.package` wrote

FIELDS = ("history", "candidates", "k")
OUTPUTS = ("model", "version", "system", "ranked_by", "items", "preference", "inferred_by", "evidence", "unknown")
SIGNATURE = ModelSignature(outputs=Schema([ColSpec(AnyType(), name) for name in OUTPUTS]))


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
        """One ranking a row, all of them together. What a caller can fix is answered as HTTP 400 with one line."""
        try:
            return self._predicted(model_input)
        except MlflowException:
            raise
        except Exception as error:  # else MLflow would answer with the stack trace; the server's log keeps it
            log.exception("a request could not be answered")
            what = " ".join(f"{type(error).__name__}: {error}".split())[:SHOWN]
            raise MlflowException(
                f"the request could not be answered ({what}); the server's log has the stack trace",
                error_code=INTERNAL_ERROR,
            ) from None

    def _predicted(self, model_input: Any) -> list[dict[str, Any]]:
        from recalign.common.errors import RecalignError
        from recalign.registry.serving import MOST_QUERIES, Query

        rows = _rows(model_input)
        if len(rows) > MOST_QUERIES:
            raise _refused(MOST_QUERIES, f"one call has {MOST_QUERIES} rows at most, not {len(rows)}; send several")
        queries = []
        for number, row in enumerate(rows):
            try:
                queries.append(Query.of(_given(row)))
            except RecalignError as error:
                raise _refused(number, str(error)) from None
        try:
            return self.service.answers(queries)
        except RecalignError:
            return [self._alone(number, query) for number, query in enumerate(queries)]

    def _alone(self, number: int, query: "Query") -> dict[str, Any]:
        """The answer to one row, so that an error names the row."""
        from recalign.common.errors import RecalignError

        try:
            return self.service.answer(query)
        except RecalignError as error:
            raise _refused(number, str(error)) from None


def _rows(model_input: Any) -> list[dict[str, Any]]:
    """The rows of what MLflow hands over: a frame, or what its keys `inputs` and `instances` hold."""
    try:
        frame = model_input if isinstance(model_input, pd.DataFrame) else pd.DataFrame(_listed(model_input))
    except (TypeError, ValueError) as error:
        said = f"{str(error)[:SHOWN]}; send dataframe_records, a list of objects with {', '.join(FIELDS)}"
        raise _refused(0, said) from None
    unknown = [str(name) for name in frame.columns if name not in FIELDS]
    if unknown:
        names = ", ".join(unknown)
        names = names if len(names) <= SHOWN else f"{names[:SHOWN]}…"
        raise _refused(
            0, f"{names}: no such field; allowed are {', '.join(FIELDS)}, as dataframe_records (a list of objects)"
        )
    rows: list[dict[str, Any]] = frame.to_dict("records")
    return rows


def _listed(model_input: Any) -> Any:
    """A mapping of columns as lists of rows, whatever arrays they came as."""
    if not isinstance(model_input, dict):
        return list(model_input)
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in model_input.items()}


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
