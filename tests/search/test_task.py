"""`cyclic search`: exact neighbours of other patients, diversity of reports, conditions, the HTML page, faiss."""

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.makers import Ran, make_png, smooth_image
from PIL import Image

from cyclic_cli.config import Preprocessing, TrainConfig
from cyclic_cli.metrics.generated_text import marked_differences, tfidf
from cyclic_cli.privacy.keys import Keyer
from cyclic_cli.search.neighbours import compare, maximal_marginal_relevance, nearest
from cyclic_cli.storage.dataset import StoredDataset
from cyclic_cli.storage.embeddings import Facts
from cyclic_cli.storage.embeddings_writing import Rows, table_of, write
from cyclic_cli.training.task import train

Cyclic = Callable[..., Ran]
TEXT = ["key", "patient", "study", "split", "kind", "source", "region", "text"]


def make_file(path: Path, rows: list[dict[str, Any]], dimensions: int = 2, **facts: Any) -> Path:
    """An embedding file; rows give what differs from the default: key, patient, vector, text, region, age."""
    filled = [{"kind": "image", "split": "test", "age": 0.0, **dict.fromkeys(TEXT, ""), **row} for row in rows]
    for row in filled:
        row["kind"], row["split"] = row["kind"] or "image", row["split"] or "test"
        row["patient"] = row["patient"] or f"p{row['key']}"
    vectors = np.array([row["vector"] for row in filled], np.float32)
    kinds = dict.fromkeys(TEXT, "string") | {"age": "float32"}
    table = table_of(Rows({name: [row[name] for row in filled] for name in kinds}, vectors), kinds)
    known: dict[str, Any] = {
        "model": "m", "architecture": "linear", "preprocessing": Preprocessing(size=32), "dimensions": dimensions,
        "secret": Keyer(b"").check(), "labels": ["region", "age"],
    }  # fmt: skip
    write(path, lambda: iter([table]), Facts(**known | facts), kinds)
    return path


def at(degrees: float) -> list[float]:
    """A unit vector at an angle."""
    return [float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))]


def test_nearest_equals_the_whole_matrix_product() -> None:
    generator = np.random.default_rng(0)
    rows = generator.integers(-3, 4, (1000, 4)).astype(np.float32)  # with many ties
    query, allowed = np.array([1, 2, -1, 0.5], np.float32), generator.random(1000) < 0.7
    for count in (1, 10, 2000):
        found, numbers = nearest(query, np.array_split(rows, 13), count, allowed)
        products = np.where(allowed, rows @ query, -np.inf)
        wanted = np.lexsort((np.arange(1000), -products))[: min(count, int(allowed.sum()))]
        assert numbers.tolist() == wanted.tolist()
        np.testing.assert_allclose(found, products[wanted])


def test_maximal_marginal_relevance() -> None:
    """By hand: the second is as near as the first, with the same report; at λ = 0.5 the third wins, 0.35 against 0."""
    similarity = np.array([0.9, 0.9, 0.7], np.float32)
    reports = np.eye(2, dtype=np.float32)[[0, 0, 1]]
    assert maximal_marginal_relevance(similarity, reports, 2, 0.0).tolist() == [0, 1]
    assert maximal_marginal_relevance(similarity, reports, 2, 0.5).tolist() == [0, 2]
    assert maximal_marginal_relevance(similarity, reports, 5, 0.2).tolist() == [0, 2, 1]  # 0.56 against 0.52
    assert maximal_marginal_relevance(similarity, reports, 2, 0.05).tolist() == [0, 1]  # 0.805 against 0.665


def test_the_query_and_its_patient_are_not_found(cyclic: Cyclic) -> None:
    rows = [("a", 0, "p1"), ("b", 1, "p1"), ("c", 5, "p2"), ("d", 90, "p3"), ("e", 4, "p4")]
    make_file(Path("e.parquet"), [{"key": key, "vector": at(turn), "patient": who} for key, turn, who in rows])
    words = ("search", "a", "--in", "e.parquet", "-k", 3, "--diversity", 0, "--json")
    ran = cyclic(*words)
    assert ran.code == 0, ran.err
    assert [one["key"] for one in ran.json["results"]] == ["e", "c", "d"]
    assert ran.json["results"][0]["similarity"] == pytest.approx(np.cos(np.radians(4)), abs=1e-6)
    assert set(ran.json) == {"query", "unknown_words", "results", "among", "diversity", "model", "index"}
    assert [one["key"] for one in cyclic(*words, "--same-patient").json["results"]] == ["b", "e", "c"]


def test_equal_reports_are_shown_once(cyclic: Cyclic) -> None:
    texts = {
        1: "No acute disease.",
        2: "No acute disease.",
        3: "No acute disease.",
        4: "Right pneumothorax.",
        9: "Mass.",
    }
    rows = [{"key": "q", "vector": at(0), "text": "Cough."}]
    rows += [{"key": f"k{turn}", "vector": at(turn), "text": text} for turn, text in texts.items()]
    make_file(Path("e.parquet"), rows)
    plain = cyclic("search", "q", "--in", "e.parquet", "-k", 3, "--diversity", 0, "--json").json["results"]
    assert [one["key"] for one in plain] == ["k1", "k2", "k3"]
    spread_out = cyclic("search", "q", "--in", "e.parquet", "-k", 3, "--json").json["results"]
    assert [one["key"] for one in spread_out] == ["k1", "k4", "k9"]
    assert spread_out[1]["text"] == "Right pneumothorax."


@pytest.mark.parametrize(
    ("where", "keys"),
    [
        ("region == 'Thorax'", ["b", "d"]),
        ("region != 'Thorax' and age >= 40", ["c"]),
        ("not region in ['Thorax', 'Head']", []),
        ("(region == 'Head' or age > 60) and split == 'test'", ["c", "d"]),
        ("age == -1", []),
        ("region not in ('Head',)", ["b", "d"]),
    ],
)
def test_conditions_on_columns(where: str, keys: list[str], cyclic: Cyclic) -> None:
    rows = [("a", "Head", 20), ("b", "Thorax", 30), ("c", "Head", 50), ("d", "Thorax", 70)]
    make_file(
        Path("e.parquet"),
        [{"key": key, "vector": at(n), "region": region, "age": age} for n, (key, region, age) in enumerate(rows)],
    )
    ran = cyclic("search", "a", "--in", "e.parquet", "--where", where, "--diversity", 0, "--json")
    if keys:
        assert [one["key"] for one in ran.json["results"]] == keys
    else:
        assert (ran.code, "is left to search" in ran.err) == (1, True)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("__import__('os').system('touch hacked')", "is not a condition"),
        ("region == open('x')", "not a constant"),
        ("regoin == 'Head'", "Did you mean 'region'?"),
        ("region >", "is not a condition"),
        ("1 < age < 3", "is not a condition"),
        ("region > 3", "region is text"),
        ("age == 'old'", "age is a number"),
        ("(" * 2000 + "age" + ")" * 2000, "is not a condition"),
        ("age == 99999999999999999999", "is not a condition"),
        ("age in [1, 'a']", "is not a condition"),
        ("region in 'Head'", "is not a condition"),
        ("region == ['Head']", "is not a condition"),
        ("region == '\\ud800'", "is not a condition"),
        ("", "is not a condition"),
    ],
    ids=[
        "call",
        "value",
        "misspelt",
        "broken",
        "chained",
        "number",
        "word",
        "deep",
        "huge",
        "mixed",
        "in text",
        "equals list",
        "surrogate",
        "empty",
    ],
)
def test_invalid_conditions_are_refused_and_never_executed(where: str, message: str, cyclic: Cyclic) -> None:
    make_file(Path("e.parquet"), [{"key": "a", "vector": at(0)}, {"key": "b", "vector": at(1)}])
    ran = cyclic("search", "a", "--in", "e.parquet", "--where", where)
    assert ran.code == 2
    assert message in ran.err
    assert not Path("hacked").exists()


@pytest.fixture
def embedded(joint_run: Path, paired_dataset: Path, cyclic: Cyclic) -> Path:
    ran = cyclic("embed", paired_dataset, "--model", joint_run, "--out", "e.parquet", "-q")
    assert ran.code == 0
    return Path("e.parquet")


def test_queries_by_image_key_and_text(embedded: Path, joint_run: Path, paired_dataset: Path, cyclic: Cyclic) -> None:
    stored = StoredDataset(paired_dataset)
    row = next(row for row in stored.index().to_pylist() if row["has_image"])
    pixels = stored.images(np.array([row["shard"]]), np.array([row["row"]]))[0, 0]
    make_png(Path("query.png"), pixels)
    words = ("--in", embedded, "--diversity", 0, "-k", 4, "--json", "--same-patient")
    by_key = cyclic("search", row["sample"], *words).json["results"]
    ran = cyclic("search", "query.png", *words, "--model", joint_run)
    assert ran.code == 0, ran.err
    by_image = [one for one in ran.json["results"] if one["key"] != row["sample"]]
    assert [one["key"] for one in by_image] == [one["key"] for one in by_key][: len(by_image)]
    for one, other in zip(by_image, by_key, strict=False):
        assert one["similarity"] == pytest.approx(other["similarity"], abs=1e-4)
    ran = cyclic("search", "A bright left disc.", *words, "--model", joint_run)
    assert ran.code == 0, ran.err
    assert "taken as a text" in ran.err
    assert {one["kind"] for one in ran.json["results"]} == {"image"}
    texts = cyclic("search", "A bright left disc.", *words, "--model", joint_run, "--kind", "text").json["results"]
    assert {one["kind"] for one in texts} == {"text"}


def test_words_of_a_query_that_the_model_does_not_know(
    embedded: Path, joint_run: Path, paired_dataset: Path, cyclic: Cyclic
) -> None:
    assert cyclic("export", "--model", joint_run, "--part", "all", "--dataset", paired_dataset, "-q").code == 0
    for model in (joint_run, Path("exported")):
        words = ("--in", embedded, "--model", model, "-k", 2, "--json")
        for query in ("xyzzy", "Bandscheibe links oben"):
            ran = cyclic("search", query, *words)
            assert (ran.code, ran.out) == (2, "")
            assert f"knows no word of the query: {', '.join(query.lower().split())}.\n" in ran.err
        assert "no word in the query" in cyclic("search", "12, 3?", *words).err
        ran = cyclic("search", "Left disc: xyzzy, 12 PLUGH", *words)
        assert ran.code == 0, ran.err
        assert "does not know these words of the query: xyzzy, plugh\n" in ran.err
        assert ran.json["unknown_words"] == ["xyzzy", "plugh"]
        ran = cyclic("search", "left disc", *words)
        assert ("does not know" in ran.err, ran.json["unknown_words"]) == (False, [])


def test_other_models_other_datasets_and_damaged_files_are_refused(
    embedded: Path, joint_run: Path, tiny_dataset: Path, tmp_path: Path, cyclic: Cyclic
) -> None:
    train(tiny_dataset, tmp_path / "other", TrainConfig(arch="linear", model={"latent": 16}, epochs=1))
    make_png(Path("query.png"), smooth_image(1))
    ran = cyclic("search", "query.png", "--in", embedded, "--model", tmp_path / "other")
    assert (ran.code, "made by another model" in ran.err) == (1, True)
    key = pq.read_table(embedded)["key"].to_pylist()[0]
    ran = cyclic("search", key, "--in", embedded, "--dataset", tiny_dataset)
    assert (ran.code, "from another dataset" in ran.err) == (1, True)
    for query in ("gone.png", "no/such", "abcdef0123456789", "", " ", str(tmp_path)):
        ran = cyclic("search", query, "--in", embedded, "--model", tmp_path / "other")
        assert (ran.code, "or a text" in ran.err) == (2, True)
    for content in (b"", b"PAR1 no more", b"key,vector\n"):
        Path("broken.parquet").write_bytes(content)
        ran = cyclic("search", "a", "--in", "broken.parquet")
        assert (ran.code, "not a Parquet file of embeddings" in ran.err) == (1, True)
    pq.write_table(pq.read_table(embedded).drop_columns(["vector"]), "bare.parquet")
    assert "not a Parquet file of embeddings" in cyclic("search", "a", "--in", "bare.parquet").err
    assert "There is no file" in cyclic("search", "a", "--in", "nothing.parquet").err


def test_reports_are_taken_from_the_dataset(embedded: Path, paired_dataset: Path, cyclic: Cyclic) -> None:
    rows = [row for row in StoredDataset(paired_dataset).index().to_pylist() if row["has_image"] and row["has_text"]]
    words = ("search", rows[0]["sample"], "--in", embedded, "--json")
    assert {one["text"] for one in cyclic(*words).json["results"]} == {None}
    found = cyclic(*words, "--dataset", paired_dataset).json["results"]
    known = {row["sample"]: row["text"] for row in rows}
    assert [one["text"] for one in found] == [known.get(one["key"]) for one in found]
    assert any(one["text"] for one in found)


class Page(HTMLParser):
    """A parsed page: its tags with their attributes, its text, and the marked text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.marks: list[str] = []
        self.text = ""
        self._in_mark = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self._in_mark = tag == "mark"

    def handle_endtag(self, tag: str) -> None:
        self._in_mark = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_mark:
            self.marks.append(data)


def test_the_page_is_self_contained_and_marks_differences(cyclic: Cyclic) -> None:
    for name in ("q", "a"):
        make_png(Path(f"{name}.png"), smooth_image(ord(name)))
    make_file(
        Path("e.parquet"),
        [
            {"key": "q", "vector": at(0), "text": "There is no effusion. Heart normal.", "source": "q.png"},
            {"key": "a", "vector": at(2), "text": "There is an effusion. Heart normal.", "source": "a.png",
             "region": "Thorax"},
            {"key": "b", "vector": at(3), "text": "<script>alert(1)</script> & more", "source": "gone.png"},
        ],
    )  # fmt: skip
    assert cyclic("search", "q", "--in", "e.parquet", "--page", "p.html", "-q").code == 0
    content = Path("p.html").read_text(encoding="utf-8")
    page = Page(content)
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 2  # the third file is missing, and the page says so
    assert all(str(one["src"]).startswith("data:image/png;base64,") and one["alt"] for one in pictures)
    assert "no picture available" in page.text
    assert "an" in page.marks
    assert not {"effusion", "Heart normal"} & set(page.marks)
    assert "alert(1)" in page.text
    assert sum(tag == "script" for tag, _ in page.tags) == 1  # the script of the page itself
    assert not re.search(r"(src|href)=\"(?!data:|#)", content)
    assert ("html", {"lang": "en"}) in page.tags
    assert "region: Thorax" in page.text
    assert "The nearest of 2 cases" in page.text
    for name in ("q", "a"):
        Path(f"{name}.png").unlink()
    assert "exists" in cyclic("search", "q", "--in", "e.parquet", "--page", "p.html").err
    ran = cyclic("search", "q", "--in", "e.parquet", "--page", "p.html", "--overwrite")
    assert "name the --dataset" in ran.err
    ran = cyclic("search", "q", "--in", "e.parquet", "--page", "e.parquet", "--overwrite")
    assert (ran.code, "not the name of an HTML page" in ran.err) == (2, True)


def test_values_are_escaped_in_the_page(cyclic: Cyclic) -> None:
    text = "<script>alert(1)</script> <img src=x>"
    rows = [
        {"key": "q", "vector": at(0), "text": text},
        {"key": "a", "vector": at(2), "text": text, "region": "<b>Thorax</b>", "patient": "<i>"},
    ]
    make_file(Path("e<u>.parquet"), rows)
    assert cyclic("search", "q", "--in", "e<u>.parquet", "--page", "p.html", "-q").code == 0
    page = Page(Path("p.html").read_text(encoding="utf-8"))
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not {"b", "i", "u", "img"} & {tag for tag, _ in page.tags}
    assert text in page.text


def test_a_page_without_reports_does_not_mention_them(cyclic: Cyclic) -> None:
    make_file(Path("e.parquet"), [{"key": key, "vector": at(turn), "text": None} for turn, key in enumerate("qab")])
    ran = cyclic("search", "q", "--in", "e.parquet", "--page", "p.html", "--where", "split == 'test'")
    assert "no report is known" in ran.err
    page = Page(Path("p.html").read_text(encoding="utf-8"))
    assert "reports differ" not in page.text
    assert not any(tag == "button" for tag, _ in page.tags)
    assert "where split == 'test'" in page.text


def test_the_page_of_a_dataset_shows_only_pictures_of_the_dataset(
    embedded: Path, joint_run: Path, paired_dataset: Path, cyclic: Cyclic
) -> None:
    stored = StoredDataset(paired_dataset)
    rows = [row for row in stored.index().to_pylist() if row["has_image"] and row["has_text"]]
    for row in rows:
        make_png(Path(row["source"]), smooth_image(1))  # other pictures with the source names of the dataset
    words = ("search", rows[0]["sample"], "--in", embedded, "--overwrite", "-q", "--page", "p.html")
    assert cyclic(*words).code == 0
    page = Page(Path("p.html").read_text(encoding="utf-8"))
    assert not any(tag == "img" for tag, _ in page.tags)
    assert cyclic(*words, "--dataset", paired_dataset).code == 0
    page = Page(Path("p.html").read_text(encoding="utf-8"))
    source = next(str(attributes["src"]) for tag, attributes in page.tags if tag == "img")
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
        shown = np.asarray(picture)
    assert (shown == stored.images(np.array([rows[0]["shard"]]), np.array([rows[0]["row"]]))[0, 0]).all()
    assert rows[0]["text"] in page.text  # the report of the query
    assert "Mark differences from the query" in page.text
    make_png(Path("new.png"), smooth_image(99))
    for more in ([], ["--dataset", paired_dataset]):  # the query file is shown either way
        words = ("search", "new.png", "--in", embedded, "--model", joint_run, "--overwrite", "-q", "--page", "p.html")
        assert cyclic(*words, *more).code == 0
        page = Page(Path("p.html").read_text(encoding="utf-8"))
        assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"][:1] == ["The query"]


def test_info_describes_an_embedding_file(embedded: Path, joint_run: Path, cyclic: Cyclic) -> None:
    described = cyclic("info", embedded, "--json").json
    assert (described["kind"], described["rows"], described["dimensions"]) == ("embeddings", 310, 16)
    assert described["model"] == cyclic("info", joint_run / "model.safetensors", "--json").json["fingerprint"]
    assert {"key", "patient", "disc"} <= set(described["columns"])


def test_an_unambiguous_beginning_of_a_key_is_enough(cyclic: Cyclic) -> None:
    keys = ["abcdef01" + "0" * 24, "abcdef01" + "1" * 24, "12345678" + "2" * 24]
    make_file(Path("e.parquet"), [{"key": key, "vector": at(turn)} for turn, key in enumerate(keys)])
    words = ("search", "--in", "e.parquet", "--json")
    assert cyclic(*words, "12345678").json["query"] == keys[2]
    assert cyclic(*words, "abcdef010").json["query"] == keys[0]
    assert "2 keys begin with" in cyclic(*words, "abcdef01").err


def test_a_report_as_query_is_not_quoted_in_errors(joint_run: Path, embedded: Path, cyclic: Cyclic) -> None:
    text = "There is left disc. " * 30
    ran = cyclic("search", text, "--in", embedded, "--model", joint_run, "--json")
    assert ran.code == 0, ran.err
    ran = cyclic("search", text, "--in", embedded, "--model", joint_run.parent / "nothing")
    assert ran.code == 1
    assert "disc" not in ran.err


def test_diversity_uses_text_embeddings_if_texts_are_not_known(cyclic: Cyclic) -> None:
    images = [{"key": key, "vector": at(turn), "text": None} for key, turn in (("q", 0), ("a", 1), ("b", 2), ("c", 3))]
    texts = [{"key": key, "vector": at(turn), "kind": "text"} for key, turn in (("a", 10), ("b", 10), ("c", 100))]
    make_file(Path("e.parquet"), [*images, *texts])
    words = ("search", "q", "--in", "e.parquet", "-k", 2, "--json", "--diversity")
    assert [one["key"] for one in cyclic(*words, 0.5).json["results"]] == ["a", "c"]
    assert [one["key"] for one in cyclic(*words, 0).json["results"]] == ["a", "b"]


def test_a_query_image_in_the_file_gets_its_patient(tiny_dataset: Path, tmp_path: Path, cyclic: Cyclic) -> None:
    model_of_images = tmp_path / "run"
    train(tiny_dataset, model_of_images, TrainConfig(arch="linear", model={"latent": 16}, epochs=1))
    Path("in").mkdir()
    rows = ["path,patient,text"]
    for number in range(9):
        make_png(Path(f"in/{number}.png"), smooth_image(number))
        rows.append(f"{number}.png,p{number // 3},Report {number}.")
    Path("in/reports.csv").write_text("\n".join(rows) + "\n")
    words = (
        "prepare",
        "in",
        "--reports",
        "in/reports.csv",
        "--out",
        "ds",
        "--size",
        32,
        "--already-deidentified",
        "-q",
    )
    assert cyclic(*words).code == 0
    assert cyclic("embed", "ds", "--model", model_of_images, "--out", "e.parquet", "-q").code == 0
    words = ("search", "in/0.png", "--in", "e.parquet", "--model", model_of_images, "-k", 9, "--json")
    ran = cyclic(*words)
    assert len(ran.json["results"]) == 6  # without the other two images of the patient
    assert len(cyclic(*words, "--same-patient").json["results"]) == 8
    make_png(Path("new.png"), smooth_image(77))
    assert "names no patient" in cyclic("search", "new.png", *words[2:]).err


def corruption(name: str) -> Callable[[pa.Table, dict[str, Any]], tuple[pa.Table, dict[str, Any]]]:
    def with_column(table: pa.Table, column: str, values: list[Any], kind: pa.DataType) -> pa.Table:
        return table.set_column(table.schema.get_field_index(column), column, pa.array(values, kind))

    def change(table: pa.Table, facts: dict[str, Any]) -> tuple[pa.Table, dict[str, Any]]:
        vectors, kind = table["vector"].to_pylist(), table.schema.field("vector").type
        if name == "labels":
            facts["labels"] = ["no such column"]
        elif name == "dimensions":
            facts["dimensions"] = 0
        elif name == "format":
            facts["format"] = 99
        elif name == "text":
            table = with_column(table, "text", list(range(len(table))), pa.int64())
        elif name == "null":
            table = with_column(table, "vector", [vectors[0], None, *vectors[2:]], kind)
        elif name == "null within":
            table = with_column(table, "vector", [vectors[0], [None, 1.0], *vectors[2:]], kind)
        elif name == "query":
            table = with_column(table, "vector", [[float("nan")] * 2, *vectors[1:]], kind)
        elif name == "norm":
            table = with_column(table, "vector", [vectors[0], [9.0, 0.0], *vectors[2:]], kind)
        return table, facts

    return change


@pytest.mark.parametrize("name", ["labels", "dimensions", "format", "text", "null", "null within", "query", "norm"])
def test_invalid_files_are_refused(name: str, cyclic: Cyclic) -> None:
    table = pq.read_table(make_file(Path("a.parquet"), [{"key": key, "vector": at(ord(key))} for key in "abc"]))
    facts = json.loads(table.schema.metadata[b"cyclic"])
    table, facts = corruption(name)(table, facts)
    pq.write_table(table.replace_schema_metadata({b"cyclic": json.dumps(facts).encode()}), "b.parquet")
    ran = cyclic("search", "a", "--in", "b.parquet")
    assert ran.code == 1, ran.out
    assert ran.err.startswith("Error: ")


def test_a_flipped_bit_is_detected(cyclic: Cyclic) -> None:
    generator = np.random.default_rng(0)
    rows = [{"key": str(number), "vector": at(float(generator.uniform(0, 360)))} for number in range(500)]
    content = bytearray(make_file(Path("a.parquet"), rows).read_bytes())
    place = content.find(np.array(rows[100]["vector"], np.float32).tobytes())
    content[place] ^= 1
    Path("b.parquet").write_bytes(content)
    assert "is damaged" in cyclic("search", "0", "--in", "b.parquet").err


def test_marked_differences_between_reports() -> None:
    base = "FINDINGS: There is no effusion. The heart is normal."
    text = "FINDINGS: The heart is normal. There is a large effusion.\nFracture of a rib."
    parts = marked_differences(text, base)
    assert "".join(words for words, _ in parts) == text
    assert [words for words, differs in parts if differs] == ["FINDINGS", "a large", "Fracture of a rib"]
    assert marked_differences(base, base) == [(base, False)]


def test_tfidf_similarity_of_texts() -> None:
    vectors = tfidf(["Left effusion.", "left EFFUSION", "A nodule.", "", ""]).toarray()
    similarity = vectors @ vectors.T
    np.testing.assert_allclose(np.diag(similarity), 1, atol=1e-6)
    assert similarity[0, 1] == pytest.approx(1, abs=1e-6)
    assert similarity[0, 2] == pytest.approx(0, abs=1e-6)
    assert (similarity[3, 4], similarity[0, 3]) == (1, 0)


def test_the_table_of_results(cyclic: Cyclic) -> None:
    rows = [
        {"key": "a" * 32, "vector": at(0)},
        {"key": "b" * 32, "vector": at(1), "text": "One.\nTwo.\nThree.", "age": 1.0},
    ]
    make_file(Path("e.parquet"), rows)
    ran = cyclic("search", "a" * 32, "--in", "e.parquet")
    assert ran.code == 0, ran.err
    assert "b" * 12 in ran.out
    assert "One. Two." in ran.out
    assert "Three" not in ran.out
    assert json.loads(cyclic("search", "a" * 32, "--in", "e.parquet", "--json").out)["results"][0]["labels"]["age"] == 1
    assert json.loads(cyclic("search", "a" * 32, "--in", "e.parquet", "--json").out)["among"] == 1


def test_comparison_with_neighbours_by_hand() -> None:
    embeddings = np.array([at(turn) for turn in (0, 1, 2, 3, 40)], np.float32)
    patients = np.array(["p", "p", "q", "r", "s"])
    labels = {"sick": np.array([1.0, 1.0, 1.0, 0.0, np.nan])}
    groups = {"reports": np.array([0, 0, 0, 1, 2])}
    found = compare(embeddings, None, patients, labels, groups, 2)
    assert set(found) == {"nearest"}
    # neighbours of 0: 2, 3; of 1: 2, 3; of 2: 1, 3 (a tie); of 3: 2, 1; of 4: 3, 2
    assert found["nearest"]["precision"]["sick"]["precision"] == pytest.approx(3 / 8)
    assert found["nearest"]["precision"]["sick"]["chance"] == pytest.approx((3 / 4) ** 2 + (1 / 4) ** 2)
    assert found["nearest"]["different"]["reports"] == pytest.approx((2 + 2 + 2 + 1 + 2) / 5)
    turns = [2, 3, 1, 2, 1, 1, 1, 2, 37, 38]
    assert found["nearest"]["similarity"] == pytest.approx(np.cos(np.radians(turns)).mean(), abs=1e-6)
    reports = np.eye(3, dtype=np.float32)[groups["reports"]]
    spread_out = compare(embeddings, reports, patients, labels, groups, 2)["diverse"]
    assert spread_out["different"]["reports"] == 2
    assert spread_out["similarity"] < found["nearest"]["similarity"]


def clustered(count: int, dimensions: int, seed: int = 0) -> np.ndarray:
    """Unit vectors (N, D) around D cluster centres."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(dimensions, dimensions))
    rows = centres[generator.integers(dimensions, size=count)] + 0.5 * generator.normal(size=(count, dimensions))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_faiss_finds_nearly_the_same_as_the_exact_search(cyclic: Cyclic) -> None:
    pytest.importorskip("faiss")
    vectors = clustered(4000, 16)
    rows = [
        {"key": f"k{n}", "vector": vector.tolist(), "region": "even" if n % 2 == 0 else "odd"}
        for n, vector in enumerate(vectors)
    ]
    make_file(Path("e.parquet"), rows, dimensions=16)
    words = ("--in", "e.parquet", "-k", 10, "--diversity", 0, "--json", "--where", "region == 'even'")
    agreed = 0
    for number in range(0, 60, 3):
        exact = cyclic("search", f"k{number}", *words).json["results"]
        ran = cyclic("search", f"k{number}", *words, "--index", "faiss")
        assert ran.code == 0, ran.err
        assert ("building the index" in ran.err) == (number == 0)
        found = ran.json["results"]
        assert len(found) == 10
        assert {one["labels"]["region"] for one in found} == {"even"}
        agreed += len({one["key"] for one in exact} & {one["key"] for one in found})
    assert agreed >= 0.98 * 200
    make_file(Path("e.parquet"), rows[:100], dimensions=16)
    assert "building the index" in cyclic("search", "k3", *words, "--index", "faiss").err


@pytest.mark.parametrize("content", [b"", b"noise" * 99, None])
def test_a_damaged_faiss_index_is_built_again(content: bytes | None, cyclic: Cyclic) -> None:
    pytest.importorskip("faiss")
    rows = [{"key": f"k{n}", "vector": vector.tolist()} for n, vector in enumerate(clustered(400, 8))]
    make_file(Path("e.parquet"), rows, dimensions=8)
    words = ("search", "k3", "--in", "e.parquet", "--index", "faiss", "--json")
    before = cyclic(*words).json["results"]
    index = Path("e.parquet.faiss")
    index.write_bytes(index.read_bytes()[:-100] if content is None else content)
    ran = cyclic(*words)
    assert ran.code == 0, ran.err
    assert "building the index" in ran.err
    assert ran.json["results"] == before
    size = len(index.read_bytes())
    index.write_bytes(b"x" * size)  # damaged, but of the expected size
    assert cyclic(*words).json["results"] == before


def test_rows_that_faiss_misses_are_found_by_the_exact_search(cyclic: Cyclic) -> None:
    pytest.importorskip("faiss")
    vectors = clustered(8000, 16)
    order = np.argsort(vectors @ vectors[0])
    far = set(order[:5].tolist())
    rows = [
        {"key": f"k{n}", "vector": vector.tolist(), "region": "far" if n in far else ""}
        for n, vector in enumerate(vectors)
    ]
    make_file(Path("e.parquet"), rows, dimensions=16)
    words = ("search", "k0", "--in", "e.parquet", "--where", "region == 'far'", "--diversity", 0, "--json")
    exact = [one["key"] for one in cyclic(*words).json["results"]]
    assert len(exact) == 5
    assert [one["key"] for one in cyclic(*words, "--index", "faiss").json["results"]] == exact
