"""Prints what compose.yaml takes for secrets, made anew: `python deploy/environment.py > deploy/.env`."""

import secrets
import sys

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

key = Ed25519PrivateKey.generate()
lines = {
    "SIGNING_KEY": key.private_bytes_raw().hex(),
    "TOKEN_KEY": key.public_key().public_bytes_raw().hex(),
    "SEAL_KEY": secrets.token_hex(32),
    "POSTGRES_PASSWORD": secrets.token_hex(16),
    "VALKEY_PASSWORD": secrets.token_hex(16),
    "GRAFANA_PASSWORD": secrets.token_urlsafe(16),
}
sys.stdout.writelines(f"{name}={value}\n" for name, value in lines.items())
