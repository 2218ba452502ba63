"""Behind a reverse proxy: nginx, as it is by default."""

import contextlib
import re
import time

import peers
import pytest
from conftest import item, write_config
from playwright.sync_api import sync_playwright
from test_dicomweb import eventually
from test_dicomweb_workitems import create
from test_mpps import serving
from test_pages import Desk, admin_password, employ, log_in, visiting
from test_websocket import Bare
from websockets.sync.client import connect

from minris.config.ini import ConfigError, load_config
from minris.config.values import read_networks
from minris.pages.site import PAGES
from minris.store.models import Patient
from minris.web.proxies import look_through


def behind(url, caller="127.0.0.1"):
    """A browser at an address that knows the system by nginx's alone."""
    origin = "/".join(url.split("/")[:3])
    return visiting(None, caller, url, headers={"Origin": origin})


PUBLIC = "[web]\npublic_url = {url}\n"


@pytest.fixture
def known(run_appliance, tmp_path):
    """Starts nginx, and behind it an appliance whose public URL is that of nginx.

    path     of the public URL
    removes  whether nginx takes the path away
    """
    with contextlib.ExitStack() as stack:

        def start(text="", lines="", path="", removes=False):
            port = peers.free_port()
            to = f"http://127.0.0.1:{port}{'/' if removes else ''}"
            place = f"{lines} location {path}/ {{ proxy_pass {to}; }}"
            url = stack.enter_context(peers.serving_nginx(tmp_path, place)) + path
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


# What was forgotten


def test_without_a_public_url_the_login_names_it(run_appliance, tmp_path):
    appliance = run_appliance()
    place = f"location / {{ proxy_pass {appliance.url}; }}"
    with peers.serving_nginx(tmp_path, place) as url, behind(url) as browser:
        answer = log_in(browser, "admin", admin_password(appliance))
    assert answer.status_code == 403
    assert "If that is this system behind a proxy: set [web] public_url" in answer.text
    assert url in answer.text


@pytest.mark.parametrize(
    ("public", "origin"),
    [
        ("https://ris.clinic.example", "https://ris.clinic.example"),
        ("https://ris.clinic.example:443/", "https://ris.clinic.example"),
        ("HTTPS://RIS.clinic.example/minris", "https://ris.clinic.example"),
        ("https://ris.clinic.example:8443", "https://ris.clinic.example:8443"),
    ],
)
def test_a_form_of_the_public_url_is_ours_however_that_is_written(run_appliance, public, origin):
    appliance = run_appliance(f"[web]\npublic_url = {public}\n")
    with visiting(appliance, headers={"Origin": origin}) as browser:
        assert log_in(browser, "admin", admin_password(appliance)).status_code == 303


def test_a_form_is_ours_where_the_proxy_writes_the_usual_port(appliance):
    headers = {"Host": "ris.clinic.example:443", "Origin": "https://ris.clinic.example"}
    with visiting(appliance, headers=headers) as browser:
        assert log_in(browser, "admin", admin_password(appliance)).status_code == 303


# Names that are not ours: RFC 9110 7.4, 15.5.20

NAMED = {
    "public_url": "[web]\npublic_url = https://ris.clinic.example/minris\n",
    "hosts": "[web]\nhosts = ris, RIS.clinic.example.\n",
}
ANY_PATH = ("/", "/login", "/healthz", "/metrics", "/events", "/static/minris.css", "/api/worklist",
            "/dicom-web/workitems", "/control/user", "/nothing")  # fmt: skip


@pytest.mark.parametrize("text", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize(
    "host", ["evil.example", "ris.clinic.example.evil.example", "192.0.2.1:80"]
)
def test_a_name_that_is_not_ours_is_misdirected_everywhere(run_appliance, text, host):
    appliance = run_appliance(text)
    headers = {"Host": host, "Authorization": f"Bearer {appliance.token()}"}
    with visiting(appliance, headers=headers) as browser:
        assert {browser.get(path).status_code for path in ANY_PATH} == {421}
        assert browser.post("/login", data={"name": "admin"}).status_code == 421
    socket = Bare(appliance, "/dicom-web/subscribers/VIEW1", headers)
    assert socket.answer()[0] == 421
    socket.close()


@pytest.mark.parametrize("text", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize(
    "host",
    ["ris.clinic.example", "RIS.clinic.example.:8080", "127.0.0.1:1", "localhost", "[::1]:80"],
)
def test_our_names_and_the_address_that_was_called_are_ours(run_appliance, text, host):
    """nginx sets Host to that address by default, and so do probes."""
    with visiting(run_appliance(text), headers={"Host": host}) as browser:
        assert browser.get("/healthz").status_code == 200


def test_without_a_name_of_ours_any_is_taken(appliance):
    with visiting(appliance, headers={"Host": "ris.clinic.example"}) as browser:
        assert browser.get("/login").status_code == 200


# Cookies know no port


def test_two_boxes_on_one_host_do_not_end_each_others_sessions(run_appliance, tmp_path):
    here, folder = run_appliance(), tmp_path / "second"
    folder.mkdir()
    port = peers.free_port()
    path = write_config(folder, f"[web]\nport = {port}\n")
    with serving(path), visiting(here) as browser:
        boxes = {here.url: admin_password(here), f"http://127.0.0.1:{port}": first_password(folder)}
        for url, password in boxes.items():
            browser.post(f"{url}/login", data={"name": "admin", "password": password})
        assert [browser.get(f"{url}/").status_code for url in boxes] == [200, 200]
        csrf = re.search('name="csrf" value="([^"]+)', browser.get("/").text)[1]
        browser.post("/logout", data={"csrf": csrf})
        assert [browser.get(f"{url}/").status_code for url in boxes] == [303, 200]


def first_password(folder):
    return (folder / "minris-admin-password.txt").read_text().strip()


@pytest.mark.parametrize(
    ("public", "name", "path"),
    [
        ("https://ris.clinic.example", "__Host-minris-https", "/"),
        ("https://clinic.example:8443/a/b", "__Secure-minris-8443.a.b", "/a/b"),
        ("http://clinic.example/minris", "minris-http.minris", "/minris"),
    ],
)
def test_a_cookie_is_named_by_the_public_url(run_appliance, public, name, path):
    """RFC 6265bis 4.1.3: __Host- is set by no other host, and has the path /."""
    appliance = run_appliance(f"[web]\npublic_url = {public}\n")
    with visiting(appliance) as browser:
        answer = log_in(browser, "admin", admin_password(appliance))
    said = answer.headers["Set-Cookie"]
    assert said.startswith(f"{name}=")
    assert f"Path={path};" in said
    assert ("; Secure" in said) == public.startswith("https")


# A public URL with a path

OURS = re.compile(r'\s(href|src|action|formaction|data-[a-z]+)="(/[^"]*)"')


def all_pages(appliance):
    """The addresses of all pages that need no number, and of an exam and a patient."""
    paths = [page.path for page in PAGES if page.get and "<" not in page.path]
    [row_id] = appliance.read(lambda: [one.id for one in Patient.select()])
    exam = ["/step/1", "/step/1/edit", "/step/1/slip", "/step/1/label"]
    return [*paths, *exam, f"/patient/{row_id}", "/?group=state", "/nothing", "/?part=board"]


@pytest.mark.parametrize(
    "removes", [True, False], ids=["nginx removes the path", "nginx leaves it"]
)
def test_every_address_of_every_page_is_below_the_path(known, removes):
    appliance, url = known(path="/clinic/minris", removes=removes)
    appliance.schedule(item())
    seen = set()
    with behind(url) as browser:
        employ(appliance, browser, "admin")
        for path in all_pages(appliance):
            answer = browser.get(path)
            assert answer.status_code in (200, 303, 400, 401, 404, 422), path
            assert answer.headers.get("Location", "/clinic/minris/").startswith("/clinic/minris/")
            seen |= set(OURS.findall(answer.text))
        assert len(seen) > 60
        assert [one for one in seen if not one[1].startswith("/clinic/minris/")] == []
        for address in sorted(
            {at.replace("&amp;", "&") for kind, at in seen if "action" not in kind}
        ):
            assert browser.get(url.removesuffix("/clinic/minris") + address).status_code < 400


def test_forms_redirects_and_cookies_are_below_the_path(known):
    appliance, url = known(path="/minris")
    with behind(url) as browser:
        answer = browser.get("/register")
        assert answer.headers["Location"] == "/minris/login?next=/register"
        answer = log_in(browser, "admin", admin_password(appliance), next="/register")
        assert answer.headers["Location"] == "/minris/register"
        assert "Path=/minris;" in answer.headers["Set-Cookie"]
        page = browser.get("/register").text
        page = page[page.index('action="/minris/register"') :]
        form = dict(re.findall(r'<input[^>]* name="(\w+)"[^>]* value="([^"]*)"', page))
        form |= {"family_name": "Wang", "device": "CT1", "procedure": "CT chest", "time": "09:30"}
        form |= {"date": "2026-07-05", "event": "anyway"}  # without birth date and sex
        answer = browser.post("/register", data=form)
        assert re.match(r"/minris/step/\d+\?registered=1", answer.headers["Location"])
        back = {"Referer": f"{url}/why?q=1", "Origin": "/".join(url.split("/")[:3])}
        csrf = re.search('name="csrf" value="([^"]+)', browser.get("/").text)[1]
        answer = browser.post("/devices/echo", data={"csrf": csrf, "name": "CT room"}, headers=back)
        assert answer.headers["Location"].startswith("/minris/")
        assert browser.get("/patients/").headers["Location"] == "/minris/patients"


UPGRADES = """proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $http_connection;"""


def test_dicomweb_and_its_websocket_are_below_the_path(known):
    appliance, url = known(lines=UPGRADES, path="/minris", removes=True)
    token = {"Authorization": f"Bearer {appliance.token()}"}
    with behind(url) as client:
        client.headers.update(token)
        answer = client.post("/dicom-web/workitems/1.2.840.10008.5.1.4.34.5/subscribers/VIEW1")
    where = answer.headers["Content-Location"]
    assert where == f"ws{url.removeprefix('http')}/dicom-web/subscribers/VIEW1"
    for address in (where, where.replace("/minris", f":{appliance.appliance.web_port}/minris")):
        address = re.sub(r":\d+:", ":", address)
        with connect(address, additional_headers=token):
            pass


def test_the_board_is_live_and_keys_work_below_the_path(known):
    appliance, url = known(path="/minris")
    today = appliance.context().today()
    appliance.schedule(item("Li^Na", ScheduledProcedureStepStartDate=today))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=peers.chromium(), args=["--no-sandbox"]
        )
        desk = Desk(chromium, appliance, base_url=url)
        desk.page.goto(f"{url}/login")
        with desk.hearing():
            desk.log_in()
        appliance.schedule(item(ScheduledProcedureStepStartDate=today))
        desk.page.get_by_role("link", name="Wang XiaoDong").wait_for(timeout=2000)
        desk.page.keyboard.press("n")
        desk.page.wait_for_url(f"{url}/register")
        assert desk.complaints == []
        chromium.close()


@pytest.mark.parametrize(
    "text",
    ["https://clinic.example/a?b", "https://clinic.example/a#b", "https://u@clinic.example",
     "https://clinic.example/a//b", "https://clinic.example/../b", "https://clinic.example/ä"],
)  # fmt: skip
def test_a_public_url_that_cannot_be_served_is_refused(tmp_path, text):
    with pytest.raises(ConfigError) as error:
        load_config(write_config(tmp_path, f"[web]\npublic_url = {text}\n"))
    assert "[web] public_url" in error.value.problems[0]


# Slashes and letters


@pytest.mark.parametrize(
    ("method", "path", "code", "where"),
    [
        ("GET", "/patients/", 301, "/patients"),
        ("GET", "/patients//", 301, "/patients"),
        ("GET", "/patients/?q=A%26B", 301, "/patients?q=A%26B"),
        ("HEAD", "/patients/", 301, "/patients"),
        ("POST", "/login/", 308, "/login"),
        ("GET", "/dicom-web/workitems/", 301, "/dicom-web/workitems"),
        ("POST", "/dicom-web/workitems/", 308, "/dicom-web/workitems"),
        ("DELETE", "/dicom-web/workitems/1.2/subscribers/A%2FB/", 308,
         "/dicom-web/workitems/1.2/subscribers/A%2FB"),
        ("GET", "/nothing/", 404, None),
        ("GET", "//evil.example/", 404, None),
        ("GET", "/patients%2F", 404, None),
    ],
)  # fmt: skip
def test_a_slash_too_many_leads_to_what_is_meant(appliance, method, path, code, where):
    with visiting(appliance) as browser:
        answer = browser.request(method, f"{appliance.url}{path}")
    assert (answer.status_code, answer.headers.get("Location")) == (code, where)


def test_a_login_leads_to_an_address_with_letters_of_any_script(appliance):
    with visiting(appliance) as browser:
        asked = browser.get("/patients?q=王 A&B".replace(" ", "%20"))
        assert asked.headers["Location"] == "/login?next=/patients%3Fq%3D%25E7%258E%258B%2520A%26B"
        fields = {"next": "/patients?q=王"}
        answer = log_in(browser, "admin", admin_password(appliance), **fields)
        assert answer.headers["Location"] == "/patients?q=%E7%8E%8B"


def test_a_proxy_that_is_not_trusted_is_named_in_the_log(known, caplog):
    _, url = known(lines=FORWARDS)
    with behind(url) as browser:
        browser.get("/login")
    assert "127.0.0.1 forwards requests of others: if it is your proxy, set trusted_proxies" in (
        caplog.text
    )


def test_the_name_that_is_listened_at_is_ours(run_appliance):
    text = "[web]\nhost = localhost\npublic_url = https://ris.clinic.example\n"
    appliance = run_appliance(text)
    with visiting(appliance) as browser:
        assert browser.get("/healthz").status_code == 200


def test_a_patient_id_of_any_signs_is_quoted_in_the_address_of_the_patient(appliance):
    token = {"Authorization": f"Bearer {appliance.token()}"}
    with visiting(appliance, url=f"{appliance.url}/dicom-web", headers=token) as door:
        create(door, "2.25.9", PatientID="A&B #1")
    with visiting(appliance) as browser:
        page = employ(appliance, browser).get("/workitem/2.25.9").text
    assert 'href="/patients?q=A%26B+%231"' in page


HTTPS = "[web]\npublic_url = https://ris.clinic.example\n"
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def test_a_browser_that_comes_by_another_name_gets_a_page_with_ours(run_appliance):
    appliance = run_appliance(HTTPS)
    with visiting(appliance, headers={"Host": "box.example", **BROWSER}) as browser:
        for answer in (browser.get("/"), browser.post("/register", data={"name": "x"})):
            assert answer.status_code == 421
            assert answer.headers["Content-Type"].startswith("text/html")
            assert "Open https://ris.clinic.example" in answer.text
        told = browser.get("/", headers={"Accept-Language": "zh-CN"}).text
        assert "请打开 https://ris.clinic.example" in told
        told = browser.get("/dicom-web/workitems")
        assert (told.status_code, told.headers["Content-Type"]) == (421, "application/json")
    with visiting(appliance, headers={"Host": "box.example", "Accept": "*/*"}) as program:
        assert program.get("/").json()["error"].startswith("This system is not called box.example")


def test_a_login_over_http_beside_an_https_public_url_is_refused_in_words(run_appliance):
    """A browser would not keep its cookie, and be asked to log in again and again."""
    appliance = run_appliance(HTTPS + "hosts = box.example\n")
    sent = {"name": "admin", "password": admin_password(appliance)}
    headers = {"Host": "box.example:8080", "Origin": "http://box.example:8080"}
    with visiting(appliance, headers=headers) as browser:
        answer = browser.post("/login", data=sent)
        assert answer.status_code == 403
        assert "Open https://ris.clinic.example and log in there" in answer.text
        headers = {"Host": "ris.clinic.example", "Origin": "https://ris.clinic.example"}
        assert browser.post("/login", data=sent, headers=headers).status_code == 303
