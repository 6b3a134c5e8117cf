"""Encryption at rest: what lies on the disk of a store cannot be read without its key.

A person gives a passphrase or a random key, which scrypt turns into a key that only unwraps another one: the store's
own, made at random when it was encrypted. So the passphrase can be changed without writing anything else anew.

* Texts, labels and settings in the catalogue, and files that are replaced whole, are encrypted with AES-GCM, which also
  finds any change.
* Records, which are read one at a time from mapped files, are encrypted with AES-XTS, as disks are: a record keeps its
  size, and its place is part of how it is encrypted. Changes are found by the digests of the catalogue.

Not hidden are the names of memories, times, sizes, and how many writes there are.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError

ENDING = ".aes"  # of the names of encrypted files
_COST = {"n": 1 << 15, "r": 8, "p": 1}  # of scrypt: 32 MB and about .1 s
_NONCE = 12
_LEAST = 16  # bytes of a block of AES


def _library() -> Any:
    """The modules of `cryptography` that are needed. Raises `ConfigError` if it is not installed."""
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
    except ImportError as error:
        raise ConfigError("this store is encrypted; pip install 'remanence[encryption]' to open it.") from error
    return Cipher, algorithms, modes, AESGCM, Scrypt


@dataclass(frozen=True)
class Sealed:
    """A store's own key as it lies in the catalogue: salt of scrypt, and the key encrypted with what scrypt gives."""

    salt: bytes
    wrapped: bytes


class Secret:
    """The key of a store.

    Args:
        key: 96 random bytes: 32 for AES-GCM, 64 for AES-XTS.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher, self._algorithms, self._modes, gcm, _ = _library()
        self._key, self._gcm = key, gcm(key[:32])
        self._of_digests = hmac.digest(key, b"digests", "sha256")

    @classmethod
    def new(cls) -> Secret:
        """A key that nobody has."""
        return cls(os.urandom(96))

    @classmethod
    def opened(cls, sealed: Sealed, passphrase: str) -> Secret:
        """The key of a store. Raises `ConfigError` if the passphrase is another one."""
        from cryptography.exceptions import InvalidTag

        gcm = _library()[3]
        nonce, data = sealed.wrapped[:_NONCE], sealed.wrapped[_NONCE:]
        try:
            return cls(gcm(_stretched(passphrase, sealed.salt)).decrypt(nonce, data, b"store"))
        except InvalidTag:
            raise ConfigError(
                "the key of this store is another one; give the one that it was encrypted with in REMANENCE_KEY, or "
                "keep it in the keyring. If this is the one, the catalogue's table `secret` was changed; restore it."
            ) from None

    def sealed(self, passphrase: str) -> Sealed:
        """The key for the catalogue, to be opened with a passphrase. Raises `ConfigError` on an empty one."""
        if not passphrase:
            raise ConfigError("the key is empty; give a long random one, such as: openssl rand -base64 32")
        salt, nonce = os.urandom(16), os.urandom(_NONCE)
        gcm = _library()[3]
        return Sealed(salt, nonce + gcm(_stretched(passphrase, salt)).encrypt(nonce, self._key, b"store"))

    # Whole pieces -----------------------------------------------------------------------------------------------------

    def seal(self, data: bytes, name: str) -> bytes:
        """Data that only `open` with the same name gives back; 28 bytes longer."""
        nonce = os.urandom(_NONCE)
        return nonce + bytes(self._gcm.encrypt(nonce, data, name.encode()))

    def open(self, data: bytes, name: str) -> bytes:
        """The inverse of `seal`. Raises ValueError if it is not what was sealed under that name."""
        from cryptography.exceptions import InvalidTag

        try:
            return bytes(self._gcm.decrypt(data[:_NONCE], data[_NONCE:], name.encode()))
        except InvalidTag as error:
            raise ValueError(f"{name} was changed") from error

    # Records ----------------------------------------------------------------------------------------------------------

    def records(self, data: Any, file: str, first: int, size: int, *, encrypt: bool) -> bytes:
        """Consecutive records of a file, encrypted or decrypted; as long as before.

        Args:
            data: their bytes.
            file: its name, which no other file of the store has.
            first: the place of the first of them in the file.
            size: bytes of a record; 16 at least.
            encrypt: or decrypt.

        Raises:
            ConfigError: smaller records.
        """
        if size < _LEAST:
            raise ConfigError(f"records of {size} bytes cannot be encrypted; a memory needs K of 8 at least for that.")
        view, parts = memoryview(data).cast("B"), []
        begin = hashlib.sha256(file.encode()).digest()[:8]
        for place in range(len(view) // size):
            tweak = begin + (first + place).to_bytes(8, "little")
            cipher = self._cipher(self._algorithms.AES(self._key[32:]), self._modes.XTS(tweak))
            run = cipher.encryptor() if encrypt else cipher.decryptor()
            parts.append(run.update(view[place * size : (place + 1) * size]) + run.finalize())
        return b"".join(parts)

    def digest(self, data: Any) -> str:
        """A digest that tells nothing about the data to anybody without the key: HMAC-SHA-256, hexadecimal."""
        return hmac.digest(self._of_digests, data, "sha256").hex()


def _stretched(passphrase: str, salt: bytes) -> bytes:
    scrypt = _library()[4]
    return bytes(scrypt(salt=salt, length=32, **_COST).derive(passphrase.encode()))


def from_keyring(store: str) -> str | None:
    """The key that the system's keyring keeps for a store, if it has one and the package `keyring` is installed."""
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError:
        return None
    try:
        return keyring.get_password("remanence", store)
    except KeyringError:  # no keyring, or a locked one
        return None
