"""The closed form in several processes, each with a cache of its own, as on nodes without a shared folder."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.makers import Ran
from helpers.thread_processes import in_threads
from helpers.tiny_encoders import tiny_image_folder, tiny_text_folder

from cyclic_cli.alignment import cycle, transport
from cyclic_cli.alignment.maps import Setting, fit_map
from cyclic_cli.codes.components import fit_components
from cyclic_cli.codes.sources import Share
from cyclic_cli.storage.checkpoint import read_checkpoint
from cyclic_cli.storage.files import read_tensors
from cyclic_cli.training import fixed_codes

Cyclic = Callable[..., Ran]
PATIENCE = 200  # seconds after which processes that wait for one another fail the test
LINES = "import sys\nfrom cyclic_cli.__main__ import main\n"


def processes(words: list[object], caches: list[Path], lines: str = LINES) -> list[Ran]:
    """Run `cyclic` in as many processes as there are caches. `lines` of Python come before it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    # The variables of torchrun, which itself would end all processes when one fails.
    common |= {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": str(len(caches)), "LOCAL_WORLD_SIZE": str(len(caches))}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", lines + "main()\n", *map(str, words)],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "CYCLIC_CACHE": str(cache)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank, cache in enumerate(caches)
    ]  # fmt: skip
    try:
        ended = [(process, process.communicate(timeout=PATIENCE)) for process in started]
    finally:
        for process in started:
            process.kill()
    return [Ran(process.returncode, out, err) for process, (out, err) in ended]


def words(dataset: Path, out: Path, *more: object) -> list[object]:
    return ["train", dataset, "--objective", "aligned", "--device", "cpu", "--precision", 32, "--json", "--out", out,
            *more]  # fmt: skip


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """A tiny image encoder and a tiny text encoder.

    They have two outputs at most. A choice among more of them is not compared: equal texts are equally near, and
    rounding decides which of them are the nearest neighbours.
    """
    folder = tmp_path_factory.mktemp("encoders")
    image, text = tiny_image_folder("vit", folder / "vit"), tiny_text_folder("bert", folder / "bert")
    return ["--image-encoder", image, "--text-encoder", text]


def solution(run: Path) -> dict[str, np.ndarray]:
    """The weights of a run, with products in place of heads and expansions.

    Signs of canonical variates are arbitrary: the same flip in heads and expansions changes no similarity.
    """
    weights = {name: value.astype(float) for name, value in read_checkpoint(run / "model.safetensors").weights.items()}
    heads = {
        name: np.column_stack([weights.pop(f"heads.{name}.weight"), weights.pop(f"heads.{name}.bias")])
        for name in ("image", "text")
    }
    for name, head in heads.items():
        expansion = weights.pop(f"expansions.{name}.weight")
        for other, from_other in heads.items():
            weights[f"{other} to {name}"] = from_other.T @ head
            weights[f"{other} to codes of {name}"] = from_other.T @ expansion.T
    return weights


def assert_same_solution(one: Path, other: Path, amplified: float = 1) -> None:
    """Sums are added in float64 in another order, and then codes and weights are rounded to float32 (6e-8).

    A ridge divides by small variances, which amplifies rounding in a single tensor. `amplified` says by how much
    rounding of the codes is amplified before.
    """
    facts = [read_checkpoint(run / "model.safetensors").architecture["facts"] for run in (one, other)]
    assert facts[0] == facts[1]
    first, second = map(solution, (one, other))
    away = {name: float(np.linalg.norm(value - second[name])) for name, value in first.items()}
    sizes = {name: float(np.linalg.norm(value)) for name, value in first.items()}
    assert np.linalg.norm(list(away.values())) < 1e-6 * amplified * np.linalg.norm(list(sizes.values()))
    assert {name: error for name, error in away.items() if error > 1e-5 * amplified * max(sizes[name], 1e-2)} == {}


def cached(cache: Path) -> dict[str, set[bytes]]:
    """The digests in a cache, by the folder of the encoder."""
    found: dict[str, set[bytes]] = {}
    for path in cache.rglob("*.safetensors"):
        digests = read_tensors(path)[0]["digests"]
        found.setdefault(path.parent.name, set()).update(row.tobytes() for row in digests)
    return found


def test_two_processes_compute_their_shares_and_find_the_solution_of_one(
    paired_dataset: Path, encoders: list[object], tmp_path: Path, cyclic: Cyclic
) -> None:
    alone = cyclic(*words(paired_dataset, tmp_path / "one", *encoders))
    assert alone.code == 0, alone.err
    caches = [tmp_path / "first", tmp_path / "second"]
    several = processes(words(paired_dataset, tmp_path / "two", *encoders), caches)
    assert [one.code for one in several] == [0, 0], several[0].err + several[1].err
    assert_same_solution(tmp_path / "one", tmp_path / "two")
    assert several[0].json["val"] == pytest.approx(alone.json["val"], rel=1e-5)
    assert several[0].json["alignment"]["parts"] == alone.json["alignment"]["parts"]
    first, second = map(cached, caches)
    images = [name for name in first if len(first[name] | second[name]) >= 102]  # texts are equal in both shares
    assert len(images) == 3  # the encoder and two kinds of histograms
    for name in images:
        assert not first[name] & second[name]
        assert abs(len(first[name]) - len(second[name])) <= 2  # of training and of validation images


SMALL_BLOCKS = (
    "from cyclic_cli.alignment import cycle, transport\n"
    "cycle.AT_ONCE = cycle.BLOCK = 20\n"
    "transport.MARGINAL_ERROR = 0\n"  # all steps, so that rounding cannot decide when to stop
)


def test_two_processes_complete_the_closed_form_as_one_does(
    paired_dataset: Path, tmp_path: Path, cyclic: Cyclic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unpaired samples are in several blocks, which the processes share."""
    more = ("--objective", "cyclic", "--paired-fraction", 0.4, "--set", "cycle_rule=always")
    for module, name, value in ((cycle, "AT_ONCE", 20), (cycle, "BLOCK", 20), (transport, "MARGINAL_ERROR", 0)):
        monkeypatch.setattr(module, name, value)
    alone = cyclic(*words(paired_dataset, tmp_path / "one", *more))
    assert alone.code == 0, alone.err
    several = processes(
        words(paired_dataset, tmp_path / "two", *more), [tmp_path / "a", tmp_path / "b"], LINES + SMALL_BLOCKS
    )
    assert [one.code for one in several] == [0, 0], several[0].err + several[1].err
    # Exponents of a plan are similarities over 0.15 standard deviations; the standard deviation is about 0.3 here.
    assert_same_solution(tmp_path / "one", tmp_path / "two", amplified=1 / (0.15 * 0.3))
    first, second = (one.json["alignment"]["cycle"] for one in (alone, several[0]))
    assert first["kept"] == "return"
    assert second == first | {name: pytest.approx(first[name], abs=0.05) for name in ("gain_on_folds", "mean_log_rank")}


@pytest.mark.slow
@pytest.mark.parametrize("more", [("--paired-fraction", 0.5), ("--fraction", 0.01)], ids=["uneven", "few"])
def test_three_processes_find_the_solution_of_one(
    more: tuple[object, ...], paired_dataset: Path, encoders: list[object], tmp_path: Path, cyclic: Cyclic
) -> None:
    """Shares are uneven; where pairs are few, a process has no text."""
    alone = cyclic(*words(paired_dataset, tmp_path / "one", *encoders, *more))
    assert alone.code == 0, alone.err
    several = processes(
        words(paired_dataset, tmp_path / "three", *encoders, *more), [tmp_path / str(rank) for rank in range(3)]
    )
    assert [one.code for one in several] == [0] * 3, several[0].err
    assert_same_solution(tmp_path / "one", tmp_path / "three")


@pytest.mark.slow
def test_training_goes_on_in_processes_with_caches_of_their_own(
    paired_dataset: Path, encoders: list[object], tmp_path: Path, cyclic: Cyclic
) -> None:
    more = ("--objective", "cyclip", "--epochs", 1, "--lr", 1e-5)
    alone = cyclic(*words(paired_dataset, tmp_path / "one", *encoders, *more))
    caches = [tmp_path / "first", tmp_path / "second"]
    several = processes(words(paired_dataset, tmp_path / "two", *encoders, *more), caches)
    assert [one.code for one in (alone, *several)] == [0] * 3, several[0].err
    assert several[0].json["val"] == pytest.approx(alone.json["val"], rel=1e-3)
    first, second = map(cached, caches)
    assert sum(not first[name] & second[name] for name in first) == 3


FAILURES = {
    # What an encoder gives is checked before it is stored: the process fails while the other one waits for its sums.
    "before the sums": (
        "from cyclic_cli.codes import sources\n"
        "usual = sources._computed\n"
        "def computed(*all):\n"
        "    return {name: one if name == 'pixels' else one * BAD for name, one in usual(*all).items()}\n"
        "sources._computed = computed\n",
        "numbers in 'gradients' that are not finite",
    ),
    # Pixels are not stored: NaN enters the sums of all processes.
    "in the sums": (
        "from cyclic_cli.codes import sources\n"
        "usual = sources.SOURCES['pixels']\n"
        "sources.SOURCES['pixels'] = lambda images: {'pixels': usual(images)['pixels'] * BAD}\n",
        "The pixels are not all finite",
    ),
    "a stop": (
        "import os, signal\n"
        "from cyclic_cli.training.closed_form import ClosedFormAlignment\n"
        "usual = ClosedFormAlignment._sources\n"
        "def stopping(*all):\n"
        "    if BAD != 1:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        import time; time.sleep(1)\n"
        "    return usual(*all)\n"
        "ClosedFormAlignment._sources = stopping\n",
        "Stopped by SIGTERM",
    ),
    "a bug": (
        "from cyclic_cli.codes import sources\n"
        "usual = sources._computed\n"
        "sources._computed = lambda *all: usual(*all) if BAD == 1 else 1 / 0\n",
        "Another process of the run has ended",
    ),
}


@pytest.mark.slow  # `helpers/exchanging.py` tests in the default run that errors meet
@pytest.mark.parametrize("failure", FAILURES)
def test_all_processes_end_when_one_fails(failure: str, paired_dataset: Path, tmp_path: Path) -> None:
    """The second process fails; the first one says why."""
    lines, message = FAILURES[failure]
    bad = "import os\nBAD = float('nan') if os.environ['RANK'] == '1' else 1\n"
    ended = processes(words(paired_dataset, tmp_path / "run"), [tmp_path / "a", tmp_path / "b"], LINES + bad + lines)
    assert ended[0].code == (143 if failure == "a stop" else 1), ended[0].err + ended[1].err
    assert message in ended[0].err
    assert "Traceback" not in ended[0].err
    assert not (tmp_path / "run").exists()


# -------------------------------------------------------------------------------------------------- the sums


class Images:
    """Images (N, 1, 8, 8), as a pool gives them."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images)

    def __len__(self) -> int:
        return len(self.images)

    def load(self, chosen: np.ndarray) -> torch.Tensor:
        return self.images[chosen]


SHARES = (np.arange(0, 90, 2), np.arange(0), np.arange(1, 90, 2))  # of three processes; one has no sample


def test_sums_over_processes_lead_to_the_solution_of_one() -> None:
    generator = np.random.default_rng(0)
    codes = {name: generator.normal(size=(90, dims)).astype(np.float32) for name, dims in (("image", 6), ("text", 5))}
    images: Any = Images(generator.random(size=(90, 1, 8, 8)).astype(np.float32))
    blocks = fit_map(Setting((1.0, 4), 1.0), codes["image"], codes["text"])

    def learned(ranks: Any, numbers: np.ndarray) -> dict[str, np.ndarray]:
        own = {name: some[numbers] for name, some in codes.items()}
        pairs = dict.fromkeys(codes, np.flatnonzero(numbers < 60))
        matrix, offset = fixed_codes.expansion(blocks, own, pairs, "text", ranks)
        drawing = fixed_codes.learn_drawing(own["image"], Share(images, numbers, ranks), lambda done, total: None)
        return drawing | {"m": matrix, "o": offset, "s": np.array(fixed_codes.spread_of(own["image"], ranks))}

    alone = in_threads(1, lambda ranks: learned(ranks, np.arange(90)))[0]
    for one in in_threads(3, lambda ranks: learned(ranks, SHARES[ranks.rank])):
        for name, value in alone.items():
            # Float64 sums in another order; components are rounded to float32.
            assert one[name] == pytest.approx(value, abs=1e-6), name


class Features:
    """Features (N, F) as rows of a cache, those of one process."""

    def __init__(self, features: np.ndarray) -> None:
        self.features, self.dims = features, features.shape[1]

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        return self.features[numbers]


def test_processes_keep_the_outputs_that_one_keeps() -> None:
    """Of three outputs, two say something about the texts."""
    generator = np.random.default_rng(0)
    shared = generator.normal(size=(90, 3))
    outputs = {
        name: (np.hstack([shared, shared]) + noise * generator.normal(size=(90, 6))).astype(np.float32)
        for name, noise in (("poor", 9.0), ("good", 0.3), ("fair", 1.0), ("text", 0.1))
    }
    components = {name: fit_components(lambda one=one: [one], 6, 3, name) for name, one in outputs.items()}  # type: ignore[misc]

    def kept(ranks: Any, pairs: np.ndarray) -> list[str]:
        source: Any = SimpleNamespace(name="encoder", title="encoder", is_cheap=False, is_foreign=True)
        parts = {
            name: fixed_codes.CandidatePart(source, name, Features(one[pairs]), components[name])
            for name, one in outputs.items()
        }
        text = [parts.pop("text")]
        shares = fixed_codes.Shares({}, pairs, dict.fromkeys(("image", "text"), np.arange(len(pairs))))
        found = fixed_codes.chosen_outputs(list(parts.values()), text, "image", "text", shares, np.arange(90), ranks)
        return [part.output for part in found]

    assert in_threads(1, lambda ranks: kept(ranks, np.arange(90))) == [["good", "fair"]]
    assert in_threads(3, lambda ranks: kept(ranks, SHARES[ranks.rank])) == [["good", "fair"]] * 3
