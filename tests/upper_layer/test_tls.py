"""TLS on the DICOM port and on the web port, with certificates that openssl makes."""

import contextlib
import dataclasses
import datetime
import os
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import httpx
import peers
import pytest
from conftest import PROGRAM, item, write_config
from peers import PATIENCE_S
from pynetdicom import AE

from minris.access.users import Login, find_token
from minris.appliance.jobs import job_renew
from minris.config.ini import ConfigError, load_config
from minris.standard.uids import VERIFICATION

CA_CONFIG = """
[ca]
default_ca = clinic
[clinic]
dir = {folder}
database = $dir/index.txt
serial = $dir/serial
new_certs_dir = $dir
certificate = $dir/ca.pem
private_key = $dir/ca.key
default_md = sha256
policy = any
x509_extensions = ext
unique_subject = no
[any]
commonName = supplied
[ext]
subjectAltName = IP:127.0.0.1
basicConstraints = CA:FALSE
"""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A certificate and its private key."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority of a clinic, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.certificate = folder, folder / "ca.pem"
        folder.mkdir(parents=True)
        (folder / "index.txt").touch()
        (folder / "serial").write_text("1000\n")
        (folder / "ca.cnf").write_text(CA_CONFIG.format(folder=folder))
        self.openssl(
            *"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650".split(),
            *("-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=Lakeside authority"),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        )

    def openssl(self, *arguments: str) -> None:
        subprocess.run(
            [peers.openssl(), *arguments], cwd=self.folder, check=True, capture_output=True
        )

    def issue(self, name: str, begin: int = -10, end: int = 365) -> Pair:
        """A certificate that holds from so many days ahead to so many (negative: ago)."""
        today = datetime.datetime.now(datetime.UTC)
        start, stop = (
            f"{today + datetime.timedelta(days=days):%Y%m%d%H%M%SZ}" for days in (begin, end)
        )
        self.openssl(
            *"req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes".split(),
            *("-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"),
        )
        self.openssl(
            *("ca", "-batch", "-config", "ca.cnf", "-notext", "-in", f"{name}.csr"),
            *("-out", f"{name}.pem", "-startdate", start, "-enddate", stop),
        )
        return Pair(self.folder / f"{name}.pem", self.folder / f"{name}.key")


@pytest.fixture(scope="session")
def clinic(tmp_path_factory):
    """The authority of the clinic."""
    return Authority(tmp_path_factory.mktemp("tls") / "clinic")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory):
    """An authority that the clinic does not know."""
    return Authority(tmp_path_factory.mktemp("tls") / "stranger")


@pytest.fixture(scope="session")
def server(clinic):
    """What the appliance shows."""
    return clinic.issue("minris")


@pytest.fixture(scope="session")
def client(clinic):
    """What a device shows."""
    return clinic.issue("ct1")


def put(pair, folder):
    """Lay a certificate where the configuration looks for it, as certbot does: both at once."""
    folder.mkdir(exist_ok=True)
    for source, name in ((pair.certificate, "server.pem"), (pair.key, "server.key")):
        part = folder / f"{name}.part"
        shutil.copyfile(source, part)
        os.replace(part, folder / name)


DICOM_TLS = "[dicom]\ntls_port = {port}\ntls_certificate = server.pem\ntls_key = server.key\n"
WEB_TLS = "[web]\ntls_certificate = server.pem\ntls_key = server.key\n"


def dicom_tls():
    return DICOM_TLS.format(port=peers.free_port())


@pytest.fixture
def secured(run_appliance, tmp_path, server):
    """Starts an appliance with TLS on both doors, or with other settings or another certificate."""

    def start(text="", pair=server):
        put(pair, tmp_path)
        return run_appliance(text or dicom_tls() + WEB_TLS)

    return start


def tls_port(appliance):
    return appliance.appliance.dicom_tls_port


def trusting(authority, pair=None):
    """A client that checks us against an authority, and shows a certificate of its own."""
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if pair:
        context.load_cert_chain(pair.certificate, pair.key)
    return context


@contextlib.contextmanager
def associated(port, context=None, calling="CT1"):
    """An association of pynetdicom over TLS, or over TCP alone."""
    ae = AE(calling)
    ae.acse_timeout = ae.network_timeout = ae.connection_timeout = 8
    ae.add_requested_context(VERIFICATION)
    tls = (context, "127.0.0.1") if context else None
    association = ae.associate(peers.HOST, port, ae_title="MINRIS", tls_args=tls)
    try:
        yield association
    finally:
        association.abort()


def echoes(port, context=None):
    """Whether an association is taken and C-ECHO answered."""
    with associated(port, context) as association:
        return association.is_established and association.send_c_echo().Status == 0


def shown_certificate(port, context):
    """The certificate that a port shows, as DER."""
    with (
        socket.create_connection((peers.HOST, port), 5) as connection,
        context.wrap_socket(connection, server_hostname="127.0.0.1") as tls,
    ):
        return tls.getpeercert(binary_form=True)


def der(pair):
    return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())


# Associations


def test_a_device_that_checks_our_certificate_is_served_over_tls(secured, clinic):
    appliance = secured()
    assert echoes(tls_port(appliance), trusting(clinic))


def test_a_device_that_does_not_know_our_authority_finds_out(secured, stranger):
    appliance = secured()
    assert not echoes(tls_port(appliance), trusting(stranger))


def test_the_plain_port_serves_beside_the_one_of_tls(secured):
    appliance = secured()
    assert echoes(appliance.port)


def test_findscu_finds_its_patient_over_tls(secured, clinic, client):
    appliance = secured()
    appliance.schedule(item("Wang^Fang"))
    options = ["+tls", client.key, client.certificate, "+cf", clinic.certificate]
    found = peers.run_findscu(
        tls_port(appliance), "MINRIS", "CT1", ["PatientName"], options=options
    )
    assert [str(ds.PatientName) for ds in found.datasets] == ["Wang^Fang"], found.log


@pytest.mark.parametrize("profile", ["+py", "+px", "+pz"])
def test_echoscu_is_served_in_each_profile_that_is_not_retired(secured, clinic, client, profile):
    """PS3.15 B.9 and B.10: BCP 195, non-downgrading, extended."""
    appliance = secured()
    options = ["+tls", client.key, client.certificate, "+cf", clinic.certificate, profile]
    done = peers.run_echoscu(tls_port(appliance), "MINRIS", "CT1", options=options)
    assert done.exit_code == 0, done.log


@pytest.mark.parametrize(
    ("version", "served"),
    [
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
    ids=lambda value: getattr(value, "name", None),
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_tls_1_2_and_later_is_spoken_and_nothing_before(secured, clinic, version, served):
    appliance = secured()
    context = trusting(clinic)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    assert echoes(tls_port(appliance), context) is served


def test_unknown_callers_are_turned_away_over_tls_too(secured, clinic, client):
    appliance = secured()
    options = ["+tls", client.key, client.certificate, "+cf", clinic.certificate]
    done = peers.run_echoscu(tls_port(appliance), "MINRIS", "NOBODY", options=options)
    assert done.exit_code != 0
    assert "Calling AE Title Not Recognized" in done.log


# Client certificates


@pytest.fixture
def strict(secured, clinic):
    """An appliance that asks devices for a certificate of the clinic."""
    return secured(dicom_tls() + f"tls_client_ca = {clinic.certificate}\n" + WEB_TLS)


def test_a_device_with_a_certificate_of_the_clinic_is_served(strict, clinic, client):
    assert echoes(tls_port(strict), trusting(clinic, client))


@pytest.mark.parametrize("what", ["none", "of a stranger", "expired"])
def test_a_device_without_a_certificate_that_holds_is_not_served(strict, clinic, stranger, what):
    pairs = {
        "none": lambda: None,
        "of a stranger": lambda: stranger.issue("ct1"),
        "expired": lambda: clinic.issue("old-ct1", -30, -1),
    }
    assert not echoes(tls_port(strict), trusting(clinic, pairs[what]()))


def test_echoscu_without_a_certificate_is_not_served(strict, clinic, client):
    anonymous = ["+tla", "+cf", clinic.certificate]
    shown = ["+tls", client.key, client.certificate, "+cf", clinic.certificate]
    codes = [
        peers.run_echoscu(tls_port(strict), "MINRIS", "CT1", options=options).exit_code
        for options in (anonymous, shown)
    ]
    assert codes[0] != 0
    assert codes[1] == 0


def test_devices_that_were_refused_leave_nothing_behind(strict, clinic, client):
    for _ in range(5):
        echoes(tls_port(strict), trusting(clinic))
    assert echoes(tls_port(strict), trusting(clinic, client))
    counts = strict.appliance.associations.counts
    assert counts["pending", ""] == 0


def test_the_pages_ask_browsers_for_no_certificate(strict, clinic):
    with httpx.Client(verify=trusting(clinic), trust_env=False) as browser:
        assert browser.get(f"{strict.url}/login").status_code == 200


# Peers that do not speak TLS, or do not speak


def connected(port, said=b""):
    connection = socket.create_connection((peers.HOST, port), 5)
    connection.sendall(said)
    return connection


HELLO = bytes.fromhex("16030100c8010000c4")  # a record that begins and does not go on


@pytest.mark.parametrize("said", [b"", HELLO], ids=["silent", "half a hello"])
@pytest.mark.parametrize("door", ["dicom", "web"])
def test_twenty_peers_that_do_not_go_on_delay_nobody(secured, clinic, door, said):
    appliance = secured()
    port = {"dicom": tls_port(appliance), "web": appliance.appliance.web_port}[door]
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connected(port, said))
        begun = time.monotonic()
        assert echoes(tls_port(appliance), trusting(clinic))
        with httpx.Client(verify=trusting(clinic), trust_env=False) as browser:
            assert browser.get(f"{appliance.url}/healthz").status_code == 200
        assert time.monotonic() - begun < 2


@pytest.mark.long
@pytest.mark.parametrize("door", ["dicom", "web"])
def test_a_silent_peer_is_closed_after_five_seconds(secured, door):
    appliance = secured()
    port = {"dicom": tls_port(appliance), "web": appliance.appliance.web_port}[door]
    with connected(port) as silent:
        silent.settimeout(9)
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            assert silent.recv(1) == b""
        assert 4 < time.monotonic() - begun < 7


def associate_request():
    """The beginning of an A-ASSOCIATE-RQ."""
    return bytes.fromhex("0100000000cd00010000") + b"MINRIS".ljust(16) + b"CT1".ljust(16)


@pytest.mark.parametrize("said", [associate_request(), b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100])
@pytest.mark.parametrize("door", ["dicom", "web"])
def test_who_does_not_speak_tls_is_closed_within_two_seconds(secured, clinic, door, said):
    appliance = secured()
    port = {"dicom": tls_port(appliance), "web": appliance.appliance.web_port}[door]
    with connected(port, said) as plain:
        plain.settimeout(2)
        with contextlib.suppress(ConnectionError):
            while plain.recv(4096):
                pass
    assert echoes(tls_port(appliance), trusting(clinic))


def test_who_falls_silent_after_the_handshake_is_closed_as_on_the_plain_port(secured, clinic):
    appliance = secured(dicom_tls() + "associate_timeout = 0.3\n")
    begun = time.monotonic()
    with (
        connected(tls_port(appliance)) as connection,
        trusting(clinic).wrap_socket(connection, server_hostname="127.0.0.1") as tls,
    ):
        tls.settimeout(8)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while tls.recv(100):
                pass
    assert time.monotonic() - begun < 2.5


# The pages


def test_the_pages_are_served_by_https(secured, clinic):
    appliance = secured()
    assert appliance.url.startswith("https://")
    with httpx.Client(verify=trusting(clinic), trust_env=False) as browser:
        assert "Log in" in browser.get(f"{appliance.url}/login").text


def test_the_cookie_of_a_login_goes_over_https_alone(secured, clinic):
    appliance = secured()
    path = appliance.config.store_path.with_name("minris-admin-password.txt")
    fields = {"name": "admin", "password": path.read_text().strip()}
    with httpx.Client(verify=trusting(clinic), trust_env=False) as browser:
        answer = browser.post(f"{appliance.url}/login", data=fields)
    assert answer.status_code == 303
    assert "secure" in answer.headers["set-cookie"].lower()


def test_a_command_beside_the_running_appliance_reaches_it_by_https(secured):
    appliance = secured()
    command = [*PROGRAM, "token", "his", "--config", str(appliance.config.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert appliance.read(find_token, done.stdout.strip()) == Login("his", "desk")


# Renewal without restart


def renew(appliance, pair):
    """Replace the files as a renewal does, and do what is done every minute."""
    put(pair, appliance.config.directory)
    later = time.time() + 2
    for name in ("server.pem", "server.key"):
        os.utime(appliance.config.directory / name, (later, later))
    job_renew(appliance.appliance)


def test_a_renewed_certificate_is_shown_without_restart(secured, clinic, server):
    appliance, renewed = secured(), clinic.issue("renewed")
    ports = tls_port(appliance), appliance.appliance.web_port
    assert {shown_certificate(port, trusting(clinic)) for port in ports} == {der(server)}
    renew(appliance, renewed)
    assert {shown_certificate(port, trusting(clinic)) for port in ports} == {der(renewed)}


def test_an_authority_that_was_replaced_is_trusted_no_more(
    secured, clinic, stranger, client, tmp_path
):
    """Its certificates were in the context for ever."""
    shutil.copyfile(clinic.certificate, tmp_path / "devices.pem")
    appliance = secured(dicom_tls() + "tls_client_ca = devices.pem\n" + WEB_TLS)
    port = tls_port(appliance)
    ours, theirs = trusting(clinic, client), trusting(clinic, stranger.issue("ct2"))
    assert (echoes(port, ours), echoes(port, theirs)) == (True, False)
    path = shutil.copyfile(stranger.certificate, tmp_path / "devices.pem")
    os.utime(path, (time.time() + 2, time.time() + 2))
    job_renew(appliance.appliance)
    assert (echoes(port, ours), echoes(port, theirs)) == (False, True)


def test_an_association_outlives_a_renewal(secured, clinic):
    appliance = secured()
    with associated(tls_port(appliance), trusting(clinic)) as association:
        renew(appliance, clinic.issue("renewed"))
        assert association.send_c_echo().Status == 0


def test_an_unchanged_certificate_is_not_read_anew(secured, caplog):
    appliance = secured()
    caplog.set_level("INFO", "minris")
    job_renew(appliance.appliance)
    assert "reloaded" not in caplog.text


def spoil(appliance, what, clinic):
    """Leave the files as a renewal that went wrong leaves them."""
    folder = appliance.config.directory
    certificate = folder / "server.pem"
    if what == "gone":
        certificate.unlink()
    elif what == "garbage":
        certificate.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    elif what == "empty":
        certificate.write_text("")
    else:  # the certificate is there already, its key not yet
        shutil.copyfile(clinic.issue("without-key").certificate, certificate)
    if certificate.exists():
        later = time.time() + 2
        os.utime(certificate, (later, later))
    job_renew(appliance.appliance)


SPOILED = pytest.mark.parametrize("what", ["gone", "garbage", "empty", "without its key"])


@SPOILED
def test_where_a_renewal_goes_wrong_the_old_certificate_serves_on(secured, clinic, server, what):
    appliance = secured()
    spoil(appliance, what, clinic)
    ports = tls_port(appliance), appliance.appliance.web_port
    assert {shown_certificate(port, trusting(clinic)) for port in ports} == {der(server)}


@SPOILED
def test_where_a_renewal_goes_wrong_it_is_logged(secured, clinic, what, caplog):
    appliance = secured()
    spoil(appliance, what, clinic)
    assert "cannot read certificate" in caplog.text


@SPOILED
def test_where_a_renewal_goes_wrong_the_pages_are_shown(secured, clinic, what):
    appliance = secured(dicom_tls())
    spoil(appliance, what, clinic)
    assert board(appliance).status_code == 200


def test_a_renewal_that_went_wrong_is_mended_by_the_next(secured, clinic):
    appliance, renewed = secured(), clinic.issue("renewed")
    spoil(appliance, "without its key", clinic)
    renew(appliance, renewed)
    assert shown_certificate(tls_port(appliance), trusting(clinic)) == der(renewed)


# Expiry


def board(appliance, **how):
    """The board as an administrator sees it."""
    headers = {"Authorization": f"Bearer {appliance.token()}"}
    with httpx.Client(headers=headers, trust_env=False, **how) as browser:
        return browser.get(f"{appliance.url}/")


def day(days):
    return f"{datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days):%Y-%m-%d}"


EXPIRY = pytest.mark.parametrize(
    ("end", "words"),
    [
        (-1, "The certificate server.pem has expired on {day}"),
        (13, "The certificate server.pem expires on {day}"),
    ],
    ids=["expired", "soon"],
)


@EXPIRY
def test_an_old_certificate_is_said_at_the_start(secured, clinic, end, words, caplog):
    """Issue: an expired certificate: said at start and on the page."""
    secured(dicom_tls(), clinic.issue(f"ends-{end}", -30, end))
    assert words.format(day=day(end)) in caplog.text


@EXPIRY
def test_an_old_certificate_is_said_on_the_page(secured, clinic, end, words):
    appliance = secured(dicom_tls(), clinic.issue(f"ends-{end}", -30, end))
    assert words.format(day=day(end)) in board(appliance).text


def test_an_old_certificate_of_the_pages_is_said_on_them(secured, clinic):
    appliance = secured(WEB_TLS, clinic.issue("old-web", -30, -1))
    assert "has expired" in board(appliance, verify=False).text


def test_a_certificate_that_holds_is_not_spoken_of(secured, caplog):
    appliance = secured(dicom_tls())
    assert "certificate" not in board(appliance).text
    assert "certificate" not in caplog.text


def test_a_renewal_takes_the_words_off_the_page(secured, clinic, server):
    appliance = secured(dicom_tls(), clinic.issue("old-dicom", -30, -1))
    renew(appliance, server)
    assert "certificate" not in board(appliance).text


# What is wrong with the files is said before any port opens.


def serve(folder, text):
    """Start minris as a program that cannot start; how it ended."""
    config = write_config(folder, text)
    return subprocess.run(
        [*PROGRAM, "serve", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def another_key(folder, pair, clinic):
    put(Pair(pair.certificate, clinic.issue("another").key), folder)


WRONG_FILES = {
    "garbage": lambda folder, *_: [
        (folder / name).write_text("no PEM\n") for name in ("server.pem", "server.key")
    ],
    "another key": another_key,
    "a folder": lambda folder, *_: [(folder / n).mkdir() for n in ("server.pem", "server.key")],
    "not there": lambda *_: None,
}


@pytest.mark.parametrize("what", WRONG_FILES)
def test_a_certificate_that_cannot_be_used_is_one_line_and_exit_status_2(
    tmp_path, server, clinic, what
):
    WRONG_FILES[what](tmp_path, server, clinic)
    done = serve(tmp_path, dicom_tls())
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert len({line.partition(":")[0] for line in lines}) == 1
    assert all(line.startswith("minris: ") and "tls_" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[dicom]\ntls_port = 2762\n", "[dicom] tls_certificate: is needed with tls_port"),
        ("[web]\ntls_key = config.ini\n", "[web] tls_certificate: is needed with tls_key"),
    ],
)
def test_tls_without_a_certificate_is_refused(tmp_path, text, words):
    with pytest.raises(ConfigError) as error:
        load_config(write_config(tmp_path, text))
    assert error.value.problems == [words]
