"""Random streams and findings for tests of the synthetic radiographs."""

import itertools

import numpy as np

from cyclic_cli.phantom.findings import Finding, sample_finding


def stream(*seed: int) -> np.random.Generator:
    """A random generator with the seed that the numbers form."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))


def finding_of(name: str, **wanted: str) -> Finding:
    """A random finding with the wanted attributes."""
    for seed in itertools.count():
        finding = sample_finding(name, stream(11, seed))
        if all(getattr(finding, word) == value for word, value in wanted.items()):
            return finding
    raise AssertionError
