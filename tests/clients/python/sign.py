"""Signs tokens as somebody's login service does, with a library that is not ours.

The one argument is JSON: {"seed": 64 hex digits, "tokens": [{"header": {…}, "claims": {…}}, …]}. Printed is JSON:
{"x": the public key as in its JWK, "tokens": [text, …]}. A header is signed as it is given, so that it can lie.
"""

import base64
import json
import sys

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def plain(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def main():
    wanted = json.loads(sys.argv[1])
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(wanted["seed"]))
    tokens = []
    for token in wanted["tokens"]:
        signed = b".".join(plain(json.dumps(token[part]).encode()) for part in ("header", "claims"))
        tokens.append((signed + b"." + plain(key.sign(signed))).decode())
    print(json.dumps({"x": plain(key.public_key().public_bytes_raw()).decode(), "tokens": tokens}))


main()
