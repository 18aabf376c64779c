"""Names of architectures and objectives, which are files."""

import pytest

from cyclic_cli import registry
from cyclic_cli.errors import UsageError


def test_names_are_files_and_an_unknown_name_gets_a_suggestion() -> None:
    assert {"linear", "conv", "deep", "vae"} <= set(registry.names("models"))
    assert {"reconstruction", "divergence"} <= set(registry.names("objectives"))
    with pytest.raises(UsageError) as caught:
        registry.load("models", "vea", "architecture")
    assert caught.value.message == "Unknown architecture: 'vea'."
    assert "Did you mean 'vae'?" in caught.value.hint
