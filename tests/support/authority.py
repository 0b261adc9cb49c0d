"""Certificates for engines."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from .peers import unavailable


class Authority:
    """A certificate authority of openssl's."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            unavailable("this needs openssl")
        self.folder = folder
        folder.mkdir()
        self._run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                  "-subj", f"/CN={folder.name}", "-keyout", "ca.key", "-out", "ca.crt")  # fmt: skip

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)

    def issue(self, name: str) -> dict[str, str]:
        """Return the settings of an engine with a certificate for a DNS name."""
        (self.folder / f"{name}.ext").write_text(
            f"subjectAltName=DNS:{name}\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n"
        )
        self._run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
                  "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        self._run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                  "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.crt")  # fmt: skip
        return {
            "KVFERRY_TLS_CERT": str(self.folder / f"{name}.crt"),
            "KVFERRY_TLS_KEY": str(self.folder / f"{name}.key"),
            "KVFERRY_TLS_CA": str(self.folder / "ca.crt"),
        }
