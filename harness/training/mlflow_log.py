"""MLflow: files in the run's folder, or the server that MLFLOW_TRACKING_URI names.

MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri runs/tiny/mlflow
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.training.tracker import Tracker

URI = "MLFLOW_TRACKING_URI"
OUR_ID = "qa_harness.run_id"
"""Tag with the run's id, by which a resumed training finds its run."""
LONGEST_PARAMETER = 500
"""Characters of a setting's value."""


class MlflowLog(Tracker):
    """A run of the experiment `wandb.project`, through a separate client: no active run of the calling program is touched."""

    label = "MLflow"
    package = "mlflow"

    @classmethod
    def mode(cls) -> str:
        """Online where MLFLOW_TRACKING_URI names a server."""
        return "online" if os.environ.get(URI, "").startswith(("http://", "https://", "databricks")) else "offline"

    def _start(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.tracking import MlflowClient

        uri = os.environ.get(URI) or (self.start.folder / "mlflow").resolve().as_uri()
        self.client = MlflowClient(uri)
        experiment = self.client.get_experiment_by_name(self.start.project)
        place = experiment.experiment_id if experiment else self.client.create_experiment(self.start.project)
        earlier = self.client.search_runs([place], f"tags.`{OUR_ID}` = '{self.start.run_id}'", max_results=1)
        if earlier:
            self.id = earlier[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
            return
        tags = {OUR_ID: self.start.run_id, "group": self.start.group, "job_type": self.start.job_type}
        self.id = self.client.create_run(place, run_name=self.start.name, tags=tags).info.run_id
        for key, value in _flat(self.start.config):
            self.client.log_param(self.id, key, str(value)[:LONGEST_PARAMETER])

    def _log(self, values: Mapping[str, Any], step: int | None) -> None:
        for key, value in values.items():
            self.client.log_metric(self.id, key, float(value), step=step)

    def _summarize(self, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, int | float):
                self.client.log_metric(self.id, key, float(value))
            else:
                self.client.set_tag(self.id, key, value)

    def _log_table(self, name: str, columns: list[Any], rows: list[Any]) -> None:
        self.client.log_dict(self.id, {"columns": columns, "data": rows}, f"{name}.json")

    def _log_file(self, path: Path, name: str) -> None:
        self.client.log_artifact(self.id, str(path))

    def _finish(self) -> None:
        self.client.set_terminated(self.id)


def _flat(values: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """(`section.key`, value) of everything in a nested mapping."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{path}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, Mapping) and value else [(name, value)]
    return found
