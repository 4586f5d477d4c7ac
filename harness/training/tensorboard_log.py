"""TensorBoard: event files in the run's folder (`tensorboard --logdir runs/tiny/tensorboard`). It has no files and no online mode."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from harness.training.tracker import Tracker

LONGEST_TABLE = 200
"""Rows of a table that the page shows; the whole tables are in comparison.json and `harness export-answers`."""


class TensorBoardLog(Tracker):
    """A folder of event files named by the run's id; a resumed training adds a file to it."""

    label = "TensorBoard"
    package = "tensorboard"

    @classmethod
    def mode(cls) -> str:
        """Always files."""
        return "offline"

    def _start(self) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.writer = EventFileWriter(str(self.start.folder / "tensorboard" / self.start.run_id))
        self._text("config", f"```\n{json.dumps(self.start.config, indent=2, default=str)}\n```")

    def _log(self, values: Mapping[str, Any], step: int | None) -> None:
        from tensorboard.compat.proto import summary_pb2

        found = [summary_pb2.Summary.Value(tag=key, simple_value=float(value)) for key, value in values.items()]
        self._write(found, step or 0)

    def _summarize(self, values: Mapping[str, Any]) -> None:
        self._log({key: value for key, value in values.items() if isinstance(value, int | float)}, None)
        for key, value in values.items():
            if isinstance(value, str):
                self._text(key, value)

    def _log_table(self, name: str, columns: list[Any], rows: list[Any]) -> None:
        lines = [columns, [":--"] * len(columns), *rows[:LONGEST_TABLE]]
        self._text(name, "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines))

    def _finish(self) -> None:
        self.writer.close()

    def _text(self, name: str, text: str) -> None:
        from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
        from tensorboard.plugins.text import metadata

        shape = tensor_shape_pb2.TensorShapeProto()
        tensor = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=[text.encode("utf-8", "replace")]
        )
        about = metadata.create_summary_metadata(display_name=name, description="")
        self._write([summary_pb2.Summary.Value(tag=name, tensor=tensor, metadata=about)], 0)

    def _write(self, values: list[Any], step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        event = event_pb2.Event(wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=values))
        self.writer.add_event(event)


def _cell(value: Any) -> str:
    return " ".join(str("" if value is None else value).split()).replace("|", "\\|")
