"""A certificate for tests, which signs itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def made(folder: Path, *more: str) -> Path:
    """Write key.pem and cert.pem, for 127.0.0.1 and localhost, and return the certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("the program openssl makes the certificate")
    key, cert = folder / "key.pem", folder / "cert.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    names = "subjectAltName=IP:127.0.0.1,DNS:localhost"
    subprocess.run(
        [
            *("openssl", "req", "-x509", *kind, *(more or ["-nodes"]), "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", names, "-keyout", key, "-out", cert),
        ],
        check=True,
        capture_output=True,
    )
    return cert
