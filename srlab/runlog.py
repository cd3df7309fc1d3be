"""Run log room: tables of a training that grow by a row at a time and can be cut back to a checkpoint.

Takes rows (name -> value), gives CSV files that a crash leaves readable and, where `tensorboard` is installed, the same
numbers as TensorBoard events beside them.
"""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srlab import runtime

Row = dict[str, Any]


class Table:
    """Rows in memory and in a CSV file.

    Args:
        path: the file; written anew from `rows`, so that rows after a checkpoint are dropped. None keeps no file.
        columns: its columns, in order.
        rows: those that belong to the state at hand.
    """

    def __init__(self, path: Path | None, columns: Sequence[str], rows: Sequence[Row] = ()):
        self.path, self.columns, self.rows = path, tuple(columns), list(rows)
        if path:
            runtime.atomic_write(path, lambda draft: self._write(draft, self.rows, "w"))

    def add(self, row: Row) -> Row:
        """Take a row; it is in the file when this returns."""
        self.rows.append(row)
        if self.path:
            self._write(self.path, [row], "a")
        return row

    def _write(self, path: Path, rows: Sequence[Row], mode: str) -> None:
        with path.open(mode, newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            if mode == "w":
                writer.writeheader()
            writer.writerows(rows)


class Curves:
    """TensorBoard events, where it is installed; elsewhere nothing happens.

    Args:
        folder: for the event files; None writes nothing.
        step: last step of the state at hand; later ones are dropped from the curves.
    """

    def __init__(self, folder: Path | None, step: int):
        self._folder = folder if importlib.util.find_spec("tensorboard") else None
        self._step, self._writer = step, None

    def add(self, group: str, row: Mapping[str, Any]) -> None:
        """Draw each number of a row at its step."""
        if self._folder and not self._writer:  # loaded late: it takes its time
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=self._step + 1)
        if self._writer:
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self._writer.add_scalar(f"{group}/{name}", value, row["step"])

    def close(self) -> None:
        """Write what is left."""
        if self._writer:
            self._writer.close()
