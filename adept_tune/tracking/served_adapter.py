"""The model that MLflow serves. Only MLflow executes this file, when it stores or loads an adapter."""

from typing import Any

import mlflow.models
import mlflow.pyfunc
import pandas as pd  # type: ignore[import-untyped]  # no stubs among our dependencies


class ServedAdapter(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # MLflow is untyped here
    """An adapter behind MLflow's interface."""

    def load_context(self, context: Any) -> None:
        """Load the backbone and the adapter."""
        from adept_tune import load_adapter

        self._adapter = load_adapter(context.artifacts["adapter"])
        self._columns: list[str] = list(context.model_config["input_columns"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> list[str]:
        """Answer each row.

        Args:
            context: Not used.
            model_input: The task's columns, or ready text in one column.
            params: Not used.

        Returns:
            One string a row.
        """
        if not self._columns:
            return list(self._adapter.predict(model_input.iloc[:, 0].tolist()))
        return list(self._adapter.predict(model_input[self._columns].to_dict("records")))


mlflow.models.set_model(ServedAdapter())
