"""Our calls over TLS, to DCMTK's storescp and to simulated devices; the plain port closed."""

import contextlib
import ssl

import peers
import pytest
from conftest import item, write_config
from test_appliance import run
from test_simulator import said  # noqa: F401
from test_tls import (  # noqa: F401
    DICOM_TLS,
    WEB_TLS,
    client,
    clinic,
    connected,
    dicom_tls,
    echoes,
    put,
    secured,
    server,
    stranger,
    tls_port,
    trusting,
)
from test_watchdog import fed  # noqa: F401

from minris.access.devices import AccessRules
from minris.appliance.health import check_lines
from minris.cli import simulated_tls
from minris.config.ini import ConfigError, load_config
from minris.doctor import echo_outcome
from minris.simulator.archive import SimulatedArchive

DEVICE = """
[device CT room]
host = 127.0.0.1
port = {port}
tls = {tls}
"""


@pytest.fixture
def device(tmp_path, clinic, client):  # noqa: F811
    """Starts DCMTK's storescp with TLS, which wants a certificate of the clinic; gives its port."""
    with contextlib.ExitStack() as stack:

        def start(pair=client):
            port = peers.free_port()
            tls = ["+tls", pair.key, pair.certificate, "+cf", clinic.certificate, "-rc"]
            command = [peers.dcmtk("storescp"), *map(str, tls), "-aet", "CT1", str(port)]
            stack.enter_context(peers.process(command, cwd=tmp_path))
            peers.wait_for_port(port)
            return port

        yield start


@pytest.fixture
def configured(tmp_path, clinic, server):  # noqa: F811
    """A configuration with a device at a port."""
    put(server, tmp_path)

    def configure(port, tls="yes", text=""):
        authority = text or f"tls_ca = {clinic.certificate}"
        known = f"{dicom_tls()}{authority}\n{DEVICE.format(port=port, tls=tls)}"
        return load_config(write_config(tmp_path, known))

    return configure


def outcome(config):
    """What our C-ECHO to the CT comes to."""
    return echo_outcome(config, AccessRules(config).device("CT1"))


def test_a_device_is_called_over_tls_with_our_certificate(device, configured):
    assert outcome(configured(device())) == "answers"


def test_a_device_is_called_without_tls_unless_that_is_set(device, configured):
    assert outcome(configured(device(), "no")) == "unreached"


def test_the_authorities_of_callers_are_those_of_devices_too(device, configured, clinic):  # noqa: F811
    text = f"tls_client_ca = {clinic.certificate}"
    assert outcome(configured(device(), text=text)) == "answers"


@pytest.mark.parametrize("tls", ["yes", "any_name"])
def test_a_device_whose_authority_we_do_not_know_is_told_nothing(
    device, configured, stranger, tls  # noqa: F811
):  # fmt: skip
    text = f"tls_ca = {stranger.certificate}"
    found = outcome(configured(device(), tls, text))
    assert found.startswith("insecure: cannot connect: TLS: self-signed certificate")


def test_a_device_that_does_not_know_our_authority_is_named(device, configured, stranger, tmp_path):  # noqa: F811
    config = configured(device())
    put(stranger.issue("minris"), tmp_path)
    assert outcome(config).startswith(("insecure: ", "unreached"))


def test_a_device_that_speaks_no_tls_is_named(run_appliance, configured):
    assert (
        outcome(configured(run_appliance().port))
        == "insecure: cannot connect: TLS: wrong version number"
    )


@pytest.mark.parametrize(("tls", "found"), [("yes", "insecure"), ("any_name", "answers")])
def test_a_certificate_names_the_host_that_is_called_unless_that_is_waived(
    device, configured, clinic, tmp_path, tls, found  # noqa: F811
):  # fmt: skip
    config = configured(device(), tls)
    device_of = AccessRules(config).device("CT1")
    text = f"host = {device_of.host}"
    path = config.path
    path.write_text(path.read_text("utf-8").replace(text, "host = localhost"), "utf-8")
    config = load_config(path)
    assert outcome(config).partition(":")[0] == found


def test_check_tells_of_tls_with_a_device(device, configured, stranger):  # noqa: F811
    port = device()
    for text, problem in (("", ""), (f"tls_ca = {stranger.certificate}", "TLS: ")):
        lines = dict(check_lines(configured(port, text=text)))
        found = lines[f"device CT room at 127.0.0.1:{port}"]
        assert found.startswith(problem) and bool(found) == bool(problem)


# The plain port closed


@pytest.fixture
def closed(secured, clinic):  # noqa: F811
    """An appliance that speaks DICOM over TLS alone."""
    return secured(f"{dicom_tls()}port = off\ntls_client_ca = {clinic.certificate}\n")


def test_with_the_plain_port_closed_devices_are_served_over_tls(closed, clinic, client):  # noqa: F811
    assert len(closed.appliance.associations.servers) == 1
    options = ["+tls", client.key, client.certificate, "+cf", clinic.certificate]
    done = peers.run_echoscu(tls_port(closed), "MINRIS", "CT1", options=options)
    assert done.exit_code == 0, done.log
    assert f"127.0.0.1, TLS {tls_port(closed)}, pages" in closed.lines[-1]


def test_with_the_plain_port_closed_the_watchdog_is_fed(closed, fed):  # noqa: F811
    assert fed(closed)
    assert not closed.appliance.associations.own


def test_without_a_plain_port_there_is_one_for_tls(tmp_path):
    with pytest.raises(ConfigError) as error:
        load_config(write_config(tmp_path, "[dicom]\nport = off\n"))
    assert error.value.problems == ["[dicom] tls_port: is needed where port is off"]


WHOLE = """port = off
[device CT room]
host = 127.0.0.1
port = {ct}
tls = yes
[device PACS]
ae_title = PACS
role = archive
host = 127.0.0.1
port = {archive}
tls = any_name
passed_on = mpps
[commitment]
missing_minutes = 0
"""


def test_worklist_commitment_and_passing_on_go_over_tls_alone(secured, clinic, said):  # noqa: F811
    """Each listens with TLS: the box, its archive and its scanner."""
    ct, port = peers.free_port(), peers.free_port()
    text = f"{dicom_tls()}tls_ca = {clinic.certificate}\n{WHOLE.format(ct=ct, archive=port)}"
    box = secured(text)
    box.schedule(item())
    archive = SimulatedArchive("PACS", "127.0.0.1", tls_port(box), "MINRIS", said, listen=port)
    archive.calling_tls = simulated_tls(box.config)
    archive.listening_tls = simulated_tls(box.config, listening=True)
    with archive.listening():
        where = f"PACS@127.0.0.1:{port}"
        folder = box.config.directory
        done = run("simulate", "commitment", "--archive", where, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "4 images confirmed in the archive" in done.stdout
    assert "MINRIS -> PACS  N-CREATE: 0000" in said


# What is spoken: RFC 9325 4.2


@pytest.mark.parametrize("door", ["dicom", "web"])
@pytest.mark.parametrize(
    ("suites", "served"),
    [
        ("ECDHE-ECDSA-AES256-SHA384:ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES128-SHA", False),
        ("ECDHE-ECDSA-AES128-GCM-SHA256", True),
        ("ECDHE-ECDSA-AES256-GCM-SHA384", True),
        ("ECDHE-ECDSA-CHACHA20-POLY1305", True),
    ],
)
def test_no_door_speaks_cbc(secured, clinic, door, suites, served):  # noqa: F811
    appliance = secured(dicom_tls() + WEB_TLS)
    port = {"dicom": tls_port(appliance), "web": appliance.appliance.web_port}[door]
    context = trusting(clinic)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"{suites}:@SECLEVEL=0")
    with connected(port) as connection:
        try:
            context.wrap_socket(connection, server_hostname="127.0.0.1")
        except ssl.SSLError:
            assert not served
        else:
            assert served
