"""The development authority: what it makes, what it leaves alone, what it renews."""

import json
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from services.common.certificates import days_left, read_certificate
from services.common.identities import Identity
from services.local.authority import Authority, CertificatesError
from services.local.certificate_folder import CertificateFolder, write_whole
from services.local.certificates import certificates_of
from support.tls import DAYS, make_certificates
from support.typed import typed


@pytest.fixture
def folder(tmp_path: Path) -> CertificateFolder:
    return make_certificates(tmp_path / "certificates")


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def vouches(ca: Path, path: Path, name: str) -> bool:
    """Whether an authority vouches for a server of a name, by the rules of the web."""
    store = Store([certificate(ca)])
    try:
        PolicyBuilder().store(store).build_server_verifier(x509.DNSName(name)).verify(certificate(path), [])
    except VerificationError:
        return False
    return True


def contents(folder: CertificateFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.path.iterdir()}


def test_each_identity_has_a_certificate_that_names_it(folder: CertificateFolder, tmp_path: Path) -> None:
    other = make_certificates(tmp_path / "other")
    for identity in Identity:
        facts = read_certificate(folder.certificate(identity))
        assert f"spiffe://paceline/{identity}" in facts.names
        assert DAYS - 0.1 < days_left(facts) < DAYS
        key = load_pem_private_key(folder.key(identity).read_bytes(), None)
        assert key.public_key() == certificate(folder.certificate(identity)).public_key()
        if identity is not Identity.CLIENT:
            assert vouches(folder.ca, folder.certificate(identity), identity)
            assert not vouches(other.ca, folder.certificate(identity), identity)
            assert not vouches(folder.ca, folder.certificate(identity), "elsewhere")
            assert vouches(folder.ca, folder.certificate(identity), "localhost") is (identity is Identity.GATEWAY)


def test_files_are_their_owners_alone(folder: CertificateFolder) -> None:
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert len(contents(folder)) == 2 * (1 + len(Identity))
    for path in folder.path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_nothing_is_overwritten_unless_that_is_said(folder: CertificateFolder) -> None:
    before = contents(folder)
    authority = Authority.load(folder)
    for identity in Identity:
        assert not authority.issue(identity, ("more",), DAYS, "paceline", overwrite=False).is_new
    with pytest.raises(CertificatesError, match="cannot be written: File exists"):
        Authority.create(folder, DAYS, overwrite=False)
    assert contents(folder) == before
    folder.key(Identity.DRAFT).unlink()
    with pytest.raises(CertificatesError, match="go together, and only one of them is there"):
        authority.issue(Identity.DRAFT, (), DAYS, "paceline", overwrite=False)
    assert folder.certificate(Identity.DRAFT).read_bytes() == before["draft.pem"]
    assert authority.issue(Identity.DRAFT, (), DAYS, "paceline", overwrite=True).is_new


def test_a_renewed_certificate_has_the_same_names_and_another_key(folder: CertificateFolder) -> None:
    before = contents(folder)
    kept = Authority.load(folder).renew(Identity.GATEWAY, 2 * DAYS)
    assert kept.facts == read_certificate(folder.certificate(Identity.GATEWAY))
    assert days_left(kept.facts) > 2 * DAYS - 0.1
    after = contents(folder)
    assert {name for name in before if before[name] != after[name]} == {"gateway.pem", "gateway-key.pem"}
    assert kept.facts.names == tuple(
        str(name.value)
        for name in x509.load_pem_x509_certificate(before["gateway.pem"])
        .extensions.get_extension_for_class(x509.SubjectAlternativeName)
        .value
    )
    assert stat.S_IMODE(folder.key(Identity.GATEWAY).stat().st_mode) == 0o600


def test_a_renewed_authority_vouches_for_what_it_signed_before(folder: CertificateFolder) -> None:
    before = folder.ca.read_bytes()
    Authority.load(folder).renew_itself(20 * DAYS)
    assert folder.ca.read_bytes() != before
    assert vouches(folder.ca, folder.certificate(Identity.VERIFIER), "verifier")
    Authority.load(folder).renew(Identity.DRAFT, DAYS)
    (folder.path / "old.pem").write_bytes(before)
    assert vouches(folder.path / "old.pem", folder.certificate(Identity.DRAFT), "draft")


def test_no_certificate_outlives_its_authority(folder: CertificateFolder) -> None:
    kept = Authority.load(folder).renew(Identity.DRAFT, 1000 * DAYS)
    assert kept.facts.not_after == read_certificate(folder.ca).not_after


def test_an_authority_that_is_not_whole_is_told_of(folder: CertificateFolder, tmp_path: Path) -> None:
    folder.ca_key.write_bytes(folder.key(Identity.DRAFT).read_bytes())
    with pytest.raises(CertificatesError, match=r"ca-key\.pem is not the key of"):
        Authority.load(folder)
    folder.ca_key.write_text("nonsense")
    with pytest.raises(CertificatesError, match=r"ca-key\.pem holds no private key in PEM"):
        Authority.load(folder)
    folder.ca.write_text("nonsense")
    with pytest.raises(CertificatesError, match=r"ca\.pem holds no certificate in PEM"):
        list(certificates_of(folder.path))
    with pytest.raises(CertificatesError, match="cannot be read: No such file"):
        Authority.load(CertificateFolder(tmp_path / "nowhere"))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"one", overwrite=False)
    with pytest.raises(FileExistsError):
        write_whole(path, b"two", overwrite=False)
    assert path.read_bytes() == b"one"
    write_whole(path, b"two", overwrite=True)
    assert path.read_bytes() == b"two"
    assert [*tmp_path.iterdir()] == [path]


async def test_the_command_makes_shows_and_renews(tmp_path: Path) -> None:
    path = tmp_path / "certificates"
    done = await typed("certs", "make", str(path), "--name=gateway.example", "--name=verifier=10.0.0.7", "--days=40")
    assert done.code == 0, done.err
    shown = json.loads((await typed("certs", "show", str(path), "--json")).out)
    names = {each["of"]: each["names"] for each in shown}
    assert [*names] == ["ca", *Identity]
    assert "gateway.example" in names["gateway"]
    assert "10.0.0.7" in names["verifier"]
    before = contents(CertificateFolder(path))
    done = await typed("certs", "make", str(path), "--name=another.example")
    assert "All of them were there" in done.out
    done = await typed("certs", "renew", str(path))
    assert done.code == 0, done.err
    assert contents(CertificateFolder(path)) == before
    done = await typed("certs", "renew", str(path), "--within=41")
    assert done.code == 0, done.err
    after = contents(CertificateFolder(path))
    assert {name for name in before if before[name] == after[name]} == {"ca.pem", "ca-key.pem"}
    renewed = {
        each["of"]: each["names"] for each in json.loads((await typed("certs", "show", str(path), "--json")).out)
    }
    assert renewed == names
    done = await typed("certs", "make", str(path), "--overwrite")
    assert done.code == 0, done.err
    assert not set(contents(CertificateFolder(path)).values()) & set(after.values())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("make", "FOLDER", "--name=http://x"), "'http://x' is neither a host's name nor an address"),
        (("make", "FOLDER", "--name=nobody=x"), "nobody=x: there is no nobody; it is one of gateway, verifier"),
        (("make", "/dev/null/certificates"), "/dev/null/certificates cannot be written: Not a directory"),
        (("show", "FOLDER"), "FOLDER/ca.pem cannot be read: No such file or directory"),
        (("renew", "FOLDER"), "FOLDER/ca.pem cannot be read: No such file or directory"),
    ],
)
async def test_what_cannot_be_is_one_line(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    folder = str(tmp_path / "certificates")
    done = await typed("certs", *(argument.replace("FOLDER", folder) for argument in arguments))
    assert (done.code, done.out) == (1, "")
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith(says.replace("FOLDER", folder))
    assert not contents(CertificateFolder(tmp_path))
