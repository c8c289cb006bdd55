"""Private keys as PEM files in one protected folder; a key that was moved offline is absent."""

from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.exceptions import Error as SecuresystemslibError
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]

from shoal.controller.host.io.files import private_folder, write_durable
from shoal.durable import SECRET
from shoal.errors import SettingError


class KeyFolder:
    """The keys in `folder`, by name: folder mode 0700, files <name>.pem mode 0600."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded: dict[str, CryptoSigner] = {}

    def make(self, name: str) -> CryptoSigner:
        """The key of that name, generated (ed25519) if it does not exist."""
        found = self.find(name)
        if found is not None:
            return found
        private_folder(self.folder)
        signer = CryptoSigner.generate_ed25519()
        write_durable(self._path(name), signer.private_bytes, SECRET)
        self._loaded[name] = signer
        return signer

    def find(self, name: str) -> CryptoSigner | None:
        """The key, None if it is not in this folder; SettingError if its file is no key."""
        if name not in self._loaded and self._path(name).exists():
            try:
                key = load_pem_private_key(self._path(name).read_bytes(), password=None)
                self._loaded[name] = CryptoSigner(key)
            except (ValueError, TypeError, OSError, SecuresystemslibError) as error:
                raise SettingError(f"key {self._path(name)}: {error}") from error
        return self._loaded.get(name)

    def get(self, name: str) -> CryptoSigner:
        """The key; SettingError if it is not in this folder."""
        found = self.find(name)
        if found is None:
            raise SettingError(
                f"key {name} is not in {self.folder}",
                "sign where that key is kept, or copy it here",
            )
        return found

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.pem"
