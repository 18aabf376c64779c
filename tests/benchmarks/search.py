"""Measures the speed of `cyclic search` relative to a bare matrix product, and the recall of a FAISS index.

    python tests/benchmarks/search.py --work DIR                     1 million × 256, about 3 GB of disk, ten minutes
    python tests/benchmarks/search.py --work DIR --rows 20000        a quick test, some seconds

L2-normalised vectors around 10,000 centres are written as an embedding file. Three methods then take turns for several
rounds. The first is one product of all vectors in memory with a query, followed by the selection of the ten largest.
The second is `neighbours.nearest` on the same vectors in memory, in blocks as long as those of the file. The third is
the same directly from the Parquet file, whose pages may be cached. Peak memory is that of a separate process that
searches the file. The FAISS index is built once. Its recall@10 is the fraction of the ten exact nearest neighbours that
it finds, over 200 queries that are rows of the file with added noise.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from cyclic_cli.config import Preprocessing
from cyclic_cli.search.faiss_index import Approximate
from cyclic_cli.search.neighbours import nearest
from cyclic_cli.storage.embeddings import TEXTS, EmbeddingFile, Facts
from cyclic_cli.storage.embeddings_writing import ROW_GROUP, Rows, table_of, write

CENTRES, NOISE, ROUNDS, QUERIES, COUNT = 10_000, 0.7, 7, 200, 10


def make(path: Path, rows: int, dimensions: int) -> None:
    """Write an embedding file of clustered vectors."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(CENTRES, dimensions)).astype(np.float32)
    kinds = dict.fromkeys(TEXTS, "string")

    def tables():  # type: ignore[no-untyped-def]
        for first in range(0, rows, ROW_GROUP):
            count = min(ROW_GROUP, rows - first)
            vectors = centres[generator.integers(CENTRES, size=count)]
            vectors = vectors + NOISE * generator.normal(size=vectors.shape).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            names = [f"{number:032x}" for number in range(first, first + count)]
            columns = {"key": names, "patient": names, "kind": ["image"] * count}
            columns |= {name: [""] * count for name in kinds if name not in columns}
            yield table_of(Rows(columns, vectors), kinds)

    facts = Facts(model="m", architecture="none", preprocessing=Preprocessing(), dimensions=dimensions, secret="")
    write(path, tables, facts, kinds)


def seconds(what) -> float:  # type: ignore[no-untyped-def]
    begin = time.perf_counter()
    what()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--once", action="store_true", help="search the file once and print the peak memory")
    options = parser.parse_args()
    path = options.work / f"search-{options.rows}x{options.dimensions}.parquet"
    if not path.exists():
        options.work.mkdir(parents=True, exist_ok=True)
        make(path, options.rows, options.dimensions)
    file = EmbeddingFile(path)
    if options.once:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        nearest(file.vectors(np.array([0]))[0], file.blocks(), COUNT)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"before": before / 1024, "after": after / 1024}))
        return
    generator = np.random.default_rng(1)
    some = np.sort(generator.permutation(len(file))[:QUERIES])
    queries = file.vectors(some) + 0.02 * generator.normal(size=(len(some), options.dimensions)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    whole = np.concatenate(list(file.blocks()))
    blocks = [whole[first : first + ROW_GROUP] for first in range(0, len(whole), ROW_GROUP)]

    def bare() -> None:
        products = whole @ queries[0]
        best = np.argpartition(-products, COUNT)[:COUNT]
        best[np.argsort(-products[best])]

    times: dict[str, list[float]] = {"bare product": [], "in memory": [], "from the file": []}
    for _ in range(ROUNDS):
        times["bare product"].append(seconds(bare))
        times["in memory"].append(seconds(lambda: nearest(queries[0], blocks, COUNT)))
        times["from the file"].append(seconds(lambda: nearest(queries[0], file.blocks(), COUNT)))
    base = statistics.median(times["bare product"])
    for name, found in times.items():
        middle = statistics.median(found)
        print(f"{name:14} {middle:.3f} s ({min(found):.3f}–{max(found):.3f}), {middle / base:.2f} × the bare product")
    once = [sys.executable, __file__, "--work", options.work, "--rows", options.rows, "--once"]
    done = subprocess.run(
        [*map(str, once), "--dimensions", str(options.dimensions)], stdout=subprocess.PIPE, check=True
    )
    peak = json.loads(done.stdout)
    print(f"peak memory of a search of the file: {peak['after']:.0f} MB, {peak['before']:.0f} MB of it before")
    made = seconds(lambda: Approximate(file))
    index = Approximate(file)
    hits, spent = 0, 0.0
    for query in queries:
        exact = set(nearest(query, blocks, COUNT)[1].tolist())
        begin = time.perf_counter()
        hits += len(exact & set(index.nearest(query, COUNT)[1].tolist()))
        spent += time.perf_counter() - begin
    print(f"FAISS: built in {made:.0f} s; recall@{COUNT} {hits / COUNT / len(queries):.4f}, "
          f"{1000 * spent / len(queries):.2f} ms per query")  # fmt: skip


if __name__ == "__main__":
    main()
