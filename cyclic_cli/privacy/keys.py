"""Who a sample belongs to, without saying who that is: keyed hashes, the secret behind them, and the split.

Patient, study and sample keys are HMAC-SHA256 with a secret that never enters a dataset, so nobody can find
a patient by hashing the numbers of a hospital. Data that is de-identified already may be hashed with an
empty secret; then everybody gets the same keys and the same split.

A patient's place in [0, 1) is a function of the key alone. The split and every fraction are intervals of
that place: adding data moves nobody, no patient is in two splits, and 3 % lies inside 15 % inside 40 %.
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
"""What stands for a number that nobody gave (compared in upper case)."""
SCHEME = 1
"""Of keys and fingerprints; raised when either is made otherwise, so that datasets of both are not mixed."""


@dataclass(frozen=True)
class Keyer:
    """Makes keys from identities. An empty `secret` is for data that is de-identified already."""

    secret: bytes

    def key(self, kind: str, *parts: str) -> str:
        """A key of 32 hexadecimal digits for an identity; `kind` keeps a study from equalling a patient."""
        message = "\0".join((kind, *parts)).encode(errors="surrogateescape")
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()[:32]

    def number(self, text: str) -> int:
        """A keyed hash of 64 bits, signed, to compare names by."""
        digest = hashlib.blake2b(text.encode(errors="surrogateescape"), key=_short(self.secret), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)

    def check(self) -> str:
        """A value that two keyers share when they have the same secret and scheme, and that gives neither away."""
        return self.key("secret check", str(SCHEME))


@lru_cache(maxsize=4)
def _short(secret: bytes) -> bytes:
    """A secret of any length as a key of BLAKE2, which takes 64 bytes at most."""
    return hashlib.sha256(secret).digest()


def names_nobody(number: str) -> bool:
    """Whether a patient's or a study's number is none: empty, zeros, or a word for that."""
    return not number.strip("0 .-_?*") or number.strip().upper() in NOBODY


def place(patient_key: str) -> float:
    """Where a patient lies in [0, 1), from the key alone (SHA-256, its first 52 bits: exact in a float)."""
    digest = hashlib.sha256(b"place\0" + patient_key.encode()).hexdigest()
    return int(digest[:13], 16) / 16**13


def paired_place(patient_key: str) -> float:
    """Where a patient lies in [0, 1) for `--paired-fraction`: a hash that says nothing of the split."""
    digest = hashlib.sha256(b"paired\0" + patient_key.encode()).hexdigest()
    return int(digest[:13], 16) / 16**13


def split_of(position: float, shares: tuple[float, float, float]) -> tuple[str, float]:
    """The split whose interval holds a place, and the place within that interval, both from `shares` that sum to 1.

    Returns:
        The split's name and the subset position in [0, 1): `--fraction 0.4` of a split is position < 0.4.
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
    """`80/10/10` as shares that sum to 1. Raises UsageError when it is not three numbers that sum to 100."""
    try:
        train, val, test = (float(part) for part in text.split("/"))
    except ValueError:
        raise UsageError(f"--split {text!r} is not three numbers.", "Write it like 80/10/10.") from None
    if min(train, val, test) < 0 or abs(train + val + test - 100) > 1e-6:
        raise UsageError(f"--split {text!r} does not sum to 100.", "Write it like 80/10/10 or 0/0/100.")
    return train / 100, val / 100, test / 100


def find_secret(salt_file: Path | None) -> bytes:
    """The secret: from `salt_file`, else `$CYCLIC_SALT`, else the user's own, made once.

    Raises:
        CyclicError: the file cannot be read or is empty, or no secret can be kept anywhere.
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
    return _own_secret(platformdirs.user_config_path("cyclic") / "salt")


def _own_secret(path: Path) -> bytes:
    """Read the user's secret, or make it. Array jobs race here: a whole file is linked into place, once."""
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
                pass  # another process was first: its secret is everybody's
            finally:
                draft.unlink()
        secret = path.read_bytes().strip()
        if not secret:  # an empty secret would be none
            raise CyclicError(f"The secret in {path} is empty.", "Remove that file; a new secret is made.")
        return secret
    except OSError as error:
        raise CyclicError(
            f"No secret for patient keys can be kept in {path.parent}.",
            "Give one with --salt-file or $CYCLIC_SALT, or --already-deidentified for public data.",
        ) from error
