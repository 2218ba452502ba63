"""Behind a reverse proxy: nginx, as it is by default."""

import contextlib
import time

import peers
import pytest
from conftest import item
from test_dicomweb import eventually
from test_pages import admin_password, log_in, visiting

from minris.config.values import read_networks
from minris.web.proxies import look_through


def behind(url, caller="127.0.0.1"):
    """A browser at an address that knows the system by nginx's alone."""
    return visiting(None, caller, url, headers={"Origin": url})


PUBLIC = "[web]\npublic_url = {url}\n"


@pytest.fixture
def known(run_appliance, tmp_path):
    """Starts nginx, and behind it an appliance whose public URL is that of nginx."""
    with contextlib.ExitStack() as stack:

        def start(text="", lines=""):
            port = peers.free_port()
            place = f"{lines} location / {{ proxy_pass http://127.0.0.1:{port}; }}"
            url = stack.enter_context(peers.serving_nginx(tmp_path, place))
            return run_appliance(PUBLIC.format(url=url) + f"port = {port}\n{text}"), url

        yield start


# The live board


@pytest.mark.parametrize("lines", ["", "gzip on; gzip_types *; gzip_min_length 0;"],
                         ids=["defaults", "gzip"])  # fmt: skip
def test_a_change_is_shown_within_a_second_behind_nginx(known, lines):
    appliance, url = known(lines=lines)
    with behind(url) as browser:
        assert log_in(browser, "admin", admin_password(appliance)).status_code == 303
        with browser.stream("GET", "/events", headers={"Accept-Encoding": "gzip"}) as stream:
            lines = stream.iter_lines()
            assert "data:" in next(line for line in lines if line.startswith("data"))
            begun = time.monotonic()
            appliance.schedule(item())
            assert next(line for line in lines if line.startswith("data"))
            assert time.monotonic() - begun < 1


# Whose wrong passwords


def test_behind_an_unknown_proxy_wrong_passwords_of_one_lock_nobody_else(known):
    appliance, url = known()
    with behind(url) as browser:
        for _ in range(12):
            log_in(browser, "anna", "letmein")
        assert log_in(browser, "anna", "letmein").status_code == 429
        assert log_in(browser, "admin", admin_password(appliance)).status_code == 303


TRUSTED = "trusted_proxies = 127.0.0.1\n"
FORWARDS = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"


def test_behind_a_trusted_proxy_each_caller_has_its_own_address(known):
    appliance, url = known(TRUSTED, FORWARDS)
    with behind(url, "127.0.0.7") as guessing, behind(url, "127.0.0.8") as browser:
        for number in range(10):
            log_in(guessing, f"user{number}", "letmein")
        password = admin_password(appliance)
        assert log_in(guessing, "admin", password).status_code == 429
        assert log_in(browser, "admin", password).status_code == 303


def test_the_audit_log_names_the_caller_behind_a_trusted_proxy(known):
    appliance, url = known(TRUSTED, FORWARDS)
    with behind(url, "127.0.0.8") as browser:
        log_in(browser, "admin", admin_password(appliance))
        assert "admin@127.0.0.8" in browser.get("/audit").text


def test_a_caller_cannot_name_another_address_than_its_own(known):
    """The right end of X-Forwarded-For is the proxy's, what is before it the caller's."""
    appliance, url = known(TRUSTED, FORWARDS)
    with behind(url, "127.0.0.8") as browser:
        browser.headers["X-Forwarded-For"] = "192.0.2.1"
        log_in(browser, "admin", admin_password(appliance))
        page = browser.get("/audit").text
    assert "admin@127.0.0.8" in page
    assert "192.0.2.1" not in page


def test_each_caller_behind_a_trusted_proxy_has_its_own_rate(known):
    _, url = known(f"{TRUSTED}requests_per_second = 1\n", FORWARDS)
    with behind(url, "127.0.0.7") as busy, behind(url, "127.0.0.8") as browser:
        codes = [busy.get("/login").status_code for _ in range(9)]
        assert 429 in codes
        assert browser.get("/login").status_code == 200


def test_connections_behind_a_trusted_proxy_are_counted_for_each_caller(known):
    appliance, url = known(f"{TRUSTED}maximum_connections_per_address = 2\n", FORWARDS)
    with contextlib.ExitStack() as stack:
        browser = stack.enter_context(behind(url, "127.0.0.7"))
        log_in(browser, "admin", admin_password(appliance))
        streams = [stack.enter_context(browser.stream("GET", "/events")) for _ in range(3)]
        assert [stream.status_code for stream in streams] == [200, 200, 503]
        another = stack.enter_context(behind(url, "127.0.0.8"))
        assert another.get("/login").status_code == 200
    assert eventually(lambda: not appliance.appliance.web_server.addresses)


# Who calls: RFC 7239, and what X-Forwarded-For has come to mean

PROXIES = read_networks("127.0.0.1, 10.0.0.0/8, 2001:db8::/32")


def seen(peer, http="1.1", **headers):
    """Client and scheme of a request of a peer with these headers."""
    found = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    scope = {"client": (peer, 1), "scheme": "http", "headers": found, "http_version": http}
    look_through(scope, PROXIES)
    return scope["client"][0], scope["scheme"]


@pytest.mark.parametrize(
    ("peer", "headers", "caller"),
    [
        ("127.0.0.1", {}, "127.0.0.1"),
        ("127.0.0.1", {"x_forwarded_for": "192.0.2.7"}, "192.0.2.7"),
        ("127.0.0.1", {"x_forwarded_for": "203.0.113.9, 192.0.2.7"}, "192.0.2.7"),
        ("127.0.0.1", {"x_forwarded_for": "203.0.113.9, 192.0.2.7, 10.1.1.1"}, "192.0.2.7"),
        ("127.0.0.1", {"x_forwarded_for": "10.2.2.2, 10.1.1.1"}, "10.2.2.2"),
        ("127.0.0.1", {"x_forwarded_for": "192.0.2.7:41234"}, "192.0.2.7"),
        ("127.0.0.1", {"x_forwarded_for": "[2001:db9::7]:41234"}, "2001:db9::7"),
        ("127.0.0.1", {"x_forwarded_for": "192.0.2.7, unknown"}, "127.0.0.1"),
        ("127.0.0.1", {"x_forwarded_for": ""}, "127.0.0.1"),
        ("::ffff:127.0.0.1", {"x_forwarded_for": "192.0.2.7"}, "192.0.2.7"),
        ("2001:db8::1", {"x_forwarded_for": "2001:db9::7"}, "2001:db9::7"),
        ("192.0.2.66", {"x_forwarded_for": "192.0.2.7"}, "192.0.2.66"),
        ("127.0.0.1", {"forwarded": 'for="[2001:db9::7]:80";proto=https'}, "2001:db9::7"),
        ("127.0.0.1", {"forwarded": "for=203.0.113.9, proto=http;For=192.0.2.7"}, "192.0.2.7"),
        ("127.0.0.1", {"forwarded": "for=_hidden"}, "127.0.0.1"),
        ("127.0.0.1", {"forwarded": "for=192.0.2.7", "x_forwarded_for": "192.0.2.7"}, "192.0.2.7"),
        ("127.0.0.1", {"forwarded": "for=192.0.2.8", "x_forwarded_for": "192.0.2.7"}, "127.0.0.1"),
    ],
)  # fmt: skip
def test_the_caller_is_the_last_that_no_trusted_proxy_is(peer, headers, caller):
    assert seen(peer, **headers)[0] == caller


@pytest.mark.parametrize(
    ("peer", "headers", "scheme"),
    [
        ("127.0.0.1", {"x_forwarded_proto": "https"}, "https"),
        ("127.0.0.1", {"forwarded": "for=192.0.2.7;proto=https"}, "https"),
        ("127.0.0.1", {"x_forwarded_proto": "javascript"}, "http"),
        ("192.0.2.66", {"x_forwarded_proto": "https"}, "http"),
    ],
)
def test_a_trusted_proxy_tells_the_scheme(peer, headers, scheme):
    assert seen(peer, **headers)[1] == scheme


def test_behind_a_trusted_proxy_with_https_the_cookie_is_secure(known):
    appliance, url = known(TRUSTED, "proxy_set_header X-Forwarded-Proto https;")
    with behind(url) as browser:
        answer = log_in(browser, "admin", admin_password(appliance))
    assert "secure" in answer.headers["Set-Cookie"].lower()
