"""An embedding file while it is made, in parts, by one process or several.

The parts are Parquet files in the folder `.NAME.unfinished/` beside the file. Each is written whole or not at all, so
that a killed process loses the part at hand only.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclic_cli.environment import launch_identifier
from cyclic_cli.errors import CyclicError
from cyclic_cli.storage.embeddings_writing import Rows, files_of, table_of
from cyclic_cli.storage.files import remove_drafts, replacing, write_text

if TYPE_CHECKING:
    import pyarrow

COUNTS = b"cyclic part"  # key of a part's metadata: its inputs and the outcome of each


class Draft:
    """An unfinished embedding file, made part by part by one process or several."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path.with_name(f".{path.name}.unfinished")

    def taken(self) -> list[Path]:
        """Existing files that the finished file would replace.

        The CSV file of the form .npy does not count when this work was begun before: it may have written that file.
        """
        return [
            file
            for file in files_of(self.path)
            if file.exists() and (file == self.path or not self._request_path.exists())
        ]

    @property
    def _request_path(self) -> Path:
        return self.folder / "request.json"

    def begin(self, request: dict[str, Any]) -> None:
        """Begin, or continue what the same request began. Raises CyclicError when another request began it."""
        path = self._request_path
        if not path.exists():
            write_text(path, json.dumps(request))
        try:
            begun = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CyclicError(f"{path} is damaged.", f"Remove {self.folder}.") from error
        differing = [name for name in request if begun.get(name) != request[name]]
        if differing:
            raise CyclicError(
                f"{self.path} is unfinished, and was begun with another {' and '.join(differing)}.",
                f"Repeat the command that began it, remove {self.folder}, or name another --out.",
            )

    def mark_done(self, process: int) -> None:
        """Mark for the first process that this process of the same launch has written its parts."""
        write_text(self.folder / f"done-{process}", launch_identifier())

    def has_done(self, process: int) -> bool:
        """Whether a process of this launch has called `mark_done`."""
        try:
            return (self.folder / f"done-{process}").read_text(encoding="utf-8") == launch_identifier()
        except (OSError, UnicodeDecodeError):
            return False

    def part(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{number:06d}.parquet"

    def write_part(self, number: int, rows: list[Rows], kinds: dict[str, str], made_of: dict[str, Any]) -> None:
        """Write a part.

        Args:
            number: The number of the part, from 0.
            rows: Its rows; may be empty.
            kinds: Arrow types of the columns, without the vectors.
            made_of: The `digest` of its inputs, and the outcome of each.
        """
        import pyarrow as pa
        import pyarrow.parquet as parquet

        tables = [table_of(some, kinds) for some in rows if len(some)]
        table = pa.concat_tables(tables) if tables else pa.table({})
        table = table.replace_schema_metadata({COUNTS: json.dumps(made_of).encode()})
        with replacing(self.part(number)) as draft:
            parquet.write_table(table, draft, compression="NONE")

    def made_of(self, number: int) -> dict[str, Any]:
        """What `write_part` recorded about a part; empty if the part does not exist or is damaged."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        try:
            return dict(json.loads(parquet.read_schema(self.part(number)).metadata[COUNTS]))
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
            return {}

    def count(self) -> int:
        """The number of parts that exist."""
        return sum(1 for _ in self.folder.glob("part-*.parquet"))

    def tables(self, parts: int) -> Iterator["pyarrow.Table"]:
        """The first `parts` parts in order, without empty ones."""
        import pyarrow.parquet as parquet

        for number in range(parts):
            table = parquet.read_table(self.part(number))
            if table.num_rows:
                yield table

    def clear(self) -> None:
        """Remove the parts, and temporary files of the embedding file that killed processes left."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for file in files_of(self.path):
            remove_drafts(file)
