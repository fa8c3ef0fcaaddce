"""The MLflow model ("models from code"): MLflow copies this file beside the package and runs it where the model serves.

Input: columns history (a list of titles, or of item ids as your log writes them, oldest first), and, if wanted,
candidates (likewise) and k. Another column is refused by its name. Output: a ranking a row, as `Service.answer`
describes it.

The signature names both, which catalogues such as Unity Catalog ask for. Its inputs are of any type and optional:
lists mix ids with titles, and what is wrong with a field is told by `registry.serving`, in one line without the body.
"""

import ast
import logging
import math
import os
import re
import threading
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_model
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Object, Property, Schema

if TYPE_CHECKING:
    from recalign.registry.serving import Answer, Query

log = logging.getLogger(__name__)
SHOWN = 200  # characters of what came in, in an error
PACKAGE = "package"  # name of the artifact that holds what `registry.package` wrote

FIELDS = ("history", "candidates", "k")
RANKED = Object([
    Property("item_id", AnyType()),  # a number or a text, as the log writes it
    Property("title", DataType.string),
    Property("score", DataType.double),
    Property("read_by", DataType.string, required=False),  # of new items: what a fusion ranks them by
])  # fmt: skip
TEXT, TEXTS = DataType.string, Array(DataType.string)
OUTPUTS: dict[str, DataType | Array] = {
    "model": TEXT, "version": TEXT, "system": TEXT, "ranked_by": TEXT, "items": Array(RANKED), "preference": TEXT,
    "inferred_by": TEXT, "evidence": TEXTS, "unknown": TEXTS,
}  # fmt: skip
NULL = ("model", "version")  # outputs of a package that no registry gave
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(AnyType(), name, required=False) for name in FIELDS]),
    outputs=Schema([ColSpec(kind, name, required=name not in NULL) for name, kind in OUTPUTS.items()]),
)
ENFORCING = "mlflow.models.utils"  # the logger of what holds requests to the signature
LEFT_OUT = re.compile(r"Found extra inputs .*?`(\[.*\])`", re.DOTALL)


class LeftOut(logging.Filter):
    """What MLflow left out of a request since the signature lacks it: it says so in its log, and not to the caller."""

    def __init__(self) -> None:
        """Nothing was left out so far."""
        super().__init__()
        self.request = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the names of a warning for the request that this thread answers."""
        if found := LEFT_OUT.search(record.getMessage()):
            self.request.names = found[1]
        return True

    def taken(self) -> list[str]:
        """The names that were left out of this thread's request; asked once."""
        names, self.request.names = getattr(self.request, "names", "[]"), "[]"
        try:
            return sorted(map(str, ast.literal_eval(names)))
        except (SyntaxError, ValueError):  # such as a column whose name is not a number
            return [names]


class ServedModel(PythonModel):
    """A registered adapter on its base."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the package; the base comes from RECALIGN_BASE, data/models/base, or is fetched, and is checked."""
        from pathlib import Path

        from recalign.registry.serving import Service

        self.service = Service.load(Path(context.artifacts[PACKAGE]))
        self.left_out = LeftOut()
        logging.getLogger(ENFORCING).addFilter(self.left_out)
        os.environ.setdefault("MLFLOW_DISABLE_SCHEMA_DETAILS", "true")  # which repeat the whole request

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

    def _predicted(self, model_input: Any) -> list[Any]:
        from recalign.common.errors import RecalignError
        from recalign.registry.serving import MOST_QUERIES, Query

        rows = _rows(model_input, self.left_out.taken())
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

    def _alone(self, number: int, query: "Query") -> "Answer":
        """The answer to one row, so that an error names the row."""
        from recalign.common.errors import RecalignError

        try:
            return self.service.answer(query)
        except RecalignError as error:
            raise _refused(number, str(error)) from None


def _rows(model_input: Any, left_out: list[str]) -> list[dict[str, Any]]:
    """The rows of what MLflow hands over: a frame, or what its keys `inputs` and `instances` hold.

    left_out: names of columns that it held and MLflow took out.
    """
    try:
        frame = model_input if isinstance(model_input, pd.DataFrame) else pd.DataFrame(_listed(model_input))
    except (TypeError, ValueError) as error:
        said = f"{str(error)[:SHOWN]}; send dataframe_records, a list of objects with {', '.join(FIELDS)}"
        raise _refused(0, said) from None
    unknown = [*left_out, *(str(name) for name in frame.columns if name not in FIELDS)]
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
