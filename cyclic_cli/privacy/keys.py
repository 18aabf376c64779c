"""Computes keys (keyed hashes) of patients, studies and samples, finds their secret, and derives the split from keys.

Keys are HMAC-SHA256 (RFC 2104) with a secret that is never stored in a dataset. Without the secret, nobody can find a
patient by hashing all patient numbers of a hospital. Data that is de-identified already may be hashed with an empty
secret; then everybody gets the same keys and the same split.

The key of a patient determines the patient's place in [0, 1). Splits and fractions are intervals of places. Therefore
adding data moves no patient, no patient is in two splits, and the 3 % fraction is a subset of the 15 % fraction.
"""

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import platformdirs

from cyclic_cli.errors import CyclicError, UsageError

SPLITS = ("train", "val", "test")
NOBODY = {
    "ANON",
    "ANONYMIZED",
    "ANONYMISED",
    "ANONYMOUS",
    "DEIDENTIFIED",
    "NA",
    "N/A",
    "NIL",
    "NONE",
    "NULL",
    "UNKNOWN",
}
"""Placeholders for a missing patient or study number, in upper case."""
SCHEME = 1
"""Version of the rules for keys and fingerprints. It increases with every change, so that datasets never mix them."""


@dataclass(frozen=True)
class Keyer:
    """Makes keys from identities. An empty `secret` is meant for data that is de-identified already."""

    secret: bytes

    def key(self, kind: str, *parts: str) -> str:
        """The key of an identity: 32 hexadecimal digits.

        Args:
            kind: Kind of the identity, such as `patient`. Equal parts of different kinds have different keys.
            parts: The identity, such as a patient number and its issuer.
        """
        message = "\0".join((kind, *parts)).encode(errors="surrogateescape")
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()[:32]

    def number(self, text: str) -> int:
        """A keyed hash (BLAKE2b, RFC 7693) as a signed number of 64 bits, for comparing names."""
        digest = hashlib.blake2b(text.encode(errors="surrogateescape"), key=_short(self.secret), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)

    def check(self) -> str:
        """A key that is equal for keyers of the same secret and scheme, and that does not reveal the secret."""
        return self.key("secret check", str(SCHEME))


@lru_cache(maxsize=4)
def _short(secret: bytes) -> bytes:
    """The secret in a form that BLAKE2b accepts, whose key has at most 64 bytes."""
    return hashlib.sha256(secret).digest()


def is_placeholder(number: str) -> bool:
    """Whether a patient's or study's number is missing: empty, only zeros and punctuation, or a placeholder."""
    return not number.strip("0 .-_?*") or number.strip().upper() in NOBODY


def place(patient_key: str) -> float:
    """The place of a patient in [0, 1): the first 52 bits of a SHA-256 of the key, which a float holds exactly."""
    digest = hashlib.sha256(b"place\0" + patient_key.encode()).hexdigest()
    return int(digest[:13], 16) / 16**13


def paired_place(patient_key: str, seed: int = 0) -> float:
    """The place of a patient in [0, 1) for `--paired-fraction`. It is independent of `place`, and so of the split.

    Each `seed` (`paired_seed` of a run) gives other places.
    """
    drawn = f"paired\0{seed}\0" if seed else "paired\0"
    digest = hashlib.sha256((drawn + patient_key).encode()).hexdigest()
    return int(digest[:13], 16) / 16**13


def split_of(position: float, shares: tuple[float, float, float]) -> tuple[str, float]:
    """The split of a place, and the position within the split.

    Args:
        position: A place in [0, 1).
        shares: Shares of train, val and test, which sum to 1.

    Returns:
        The name of the split, and the position within it in [0, 1): `--fraction 0.4` takes positions below 0.4.
    """
    low = 0.0
    for name, share in zip(SPLITS, shares, strict=True):
        if share > 0 and (position < low + share or name == _last_used(shares)):
            return name, min((position - low) / share, 1 - 2**-52)
        low += share
    raise AssertionError("shares sum to 1")


def _last_used(shares: tuple[float, float, float]) -> str:
    return [name for name, share in zip(SPLITS, shares, strict=True) if share > 0][-1]


def parse_split(text: str) -> tuple[float, float, float]:
    """Read `80/10/10` as shares that sum to 1. Raises UsageError unless the text is three numbers that sum to 100."""
    try:
        train, val, test = (float(part) for part in text.split("/"))
    except ValueError:
        raise UsageError(f"--split {text!r} is not three numbers.", "Write it like 80/10/10.") from None
    if min(train, val, test) < 0 or abs(train + val + test - 100) > 1e-6:
        raise UsageError(f"--split {text!r} does not sum to 100.", "Write it like 80/10/10 or 0/0/100.")
    return train / 100, val / 100, test / 100


def find_secret(salt_file: Path | None) -> bytes:
    """The secret: from `salt_file`, else from `$CYCLIC_SALT`, else the user's secret, which is made on first use.

    Raises:
        CyclicError: the file cannot be read or is empty, or the user's secret cannot be stored.
    """
    if salt_file is not None:
        try:
            secret = salt_file.read_bytes().strip()
        except OSError as error:
            raise CyclicError(f"The salt file {salt_file} cannot be read.", error.strerror or "") from error
        if not secret:
            raise CyclicError(f"The salt file {salt_file} is empty.", "Put a long random line into it.")
        return secret
    if os.environ.get("CYCLIC_SALT", "").strip():
        return os.environ["CYCLIC_SALT"].strip().encode()
    return _user_secret(platformdirs.user_config_path("cyclic") / "salt")


def _user_secret(path: Path) -> bytes:
    """Read the user's secret, or make it.

    The jobs of an array may do this at the same time. A complete file is therefore linked to `path`, which succeeds in
    one process only.
    """
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f"salt.{os.getpid()}.{secrets.token_hex(4)}")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
            try:
                os.link(draft, path)
            except FileExistsError:
                pass  # another process was first, and all use its secret
            finally:
                draft.unlink()
        secret = path.read_bytes().strip()
        if not secret:  # keys with an empty secret would not protect anybody
            raise CyclicError(f"The secret in {path} is empty.", "Remove that file; a new secret is then made.")
        return secret
    except OSError as error:
        raise CyclicError(
            f"No secret for patient keys can be stored in {path.parent}.",
            "Give one with --salt-file or $CYCLIC_SALT, or use --already-deidentified for public data.",
        ) from error
