"""Signs images with C2PA, by a certificate that is made here and that nobody trusts."""

from __future__ import annotations

import datetime
import io
from typing import Any

TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def signed(content: bytes, mime: str, source_type: str = TRAINED) -> bytes:
    """The image with a manifest that says it was created with that `digitalSourceType`."""
    import c2pa
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    authority, leaf = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    private = leaf.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain = _certificate("leaf", leaf, authority) + _certificate("authority", authority, authority)
    action = {"action": "c2pa.created", "digitalSourceType": source_type}
    manifest = {
        "claim_generator_info": [{"name": "Test generator", "version": "1.0"}],
        "format": mime,
        "assertions": [{"label": "c2pa.actions", "data": {"actions": [action]}}],
    }
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", chain, private, None))
    out = io.BytesIO()
    c2pa.Builder(manifest).sign(signer, mime, io.BytesIO(content), out)
    return out.getvalue()


def _certificate(subject: str, key: Any, authority: Any) -> bytes:
    """Of a key, by an authority: as PEM; the authority's own where it is the same."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    own, now = key is authority, datetime.datetime.now(datetime.timezone.utc)
    subject_name, issuer_name = (
        x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test signer"),
                x509.NameAttribute(NameOID.COMMON_NAME, common),
            ]
        )
        for common in (subject, "authority")
    )
    usage = x509.KeyUsage(not own, False, False, False, False, own, own, False, False)
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject_name)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=own, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(issuer_key, critical=False)
    )
    if not own:
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(purpose, critical=False)
    return builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
