"""The MLflow model ("models from code") of a registered package: rows of smiles_1 and smiles_2 to answer and score."""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types.schema import ColSpec, DataType, Schema

TEXT, NUMBER = DataType.string, DataType.double
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(TEXT, "smiles_1"), ColSpec(TEXT, "smiles_2")]),
    outputs=Schema([
        ColSpec(TEXT, "answer"), ColSpec(NUMBER, "value", required=False), ColSpec(NUMBER, "score", required=False),
        ColSpec(TEXT, "smiles_1"), ColSpec(TEXT, "smiles_2"),
    ]),
)  # fmt: skip


class ServedPairs(PythonModel):
    """A registered model of pairs on its base."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the package; the base comes from RECALIGN_BASE, or data/base."""
        from moltc.serving import PairService

        self.service = PairService(Path(context.artifacts["package"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """One answer a row; what a caller can fix is answered as HTTP 400 with one line."""
        from recalign.common.errors import RecalignError

        try:
            return self.service.answer(model_input.to_dict("records"))
        except RecalignError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None


set_model(ServedPairs())
