"""TensorBoard: event files in the run's folder (`tensorboard --logdir runs/tiny/tensorboard`). It has no files and no online mode."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from importlib import import_module
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
        summary_pb2 = _proto("summary_pb2")
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
        from tensorboard.plugins.text import metadata

        summary_pb2, tensor_pb2 = _proto("summary_pb2"), _proto("tensor_pb2")
        tensor = tensor_pb2.TensorProto(
            dtype=_proto("types_pb2").DT_STRING,
            tensor_shape=_proto("tensor_shape_pb2").TensorShapeProto(),
            string_val=[text.encode("utf-8", "replace")],
        )
        about = metadata.create_summary_metadata(display_name=name, description="")
        self._write([summary_pb2.Summary.Value(tag=name, tensor=tensor, metadata=about)], 0)

    def _write(self, values: list[Any], step: int) -> None:
        summary = _proto("summary_pb2").Summary(value=values)
        event = _proto("event_pb2").Event(wall_time=time.time(), step=step, summary=summary)
        self.writer.add_event(event)


def _proto(name: str) -> Any:
    """A module of TensorBoard's protocol buffers, whose classes are created on import."""
    return import_module(f"tensorboard.compat.proto.{name}")


def _cell(value: Any) -> str:
    return " ".join(str("" if value is None else value).split()).replace("|", "\\|")
