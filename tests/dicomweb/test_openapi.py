"""Section 18, DICOMWEB: its OpenAPI description, and what schemathesis finds by it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_dicomweb_workitems import JSON, UID, create, door  # noqa: F401
from test_mpps import creation

from minris.dicomweb.routes import DICOM_ROUTES, WEB_PARAMETERS, described_route
from minris.dicomweb.transactions import MPPS_PATH

SETTINGS = f"""
[parameters]
"path.uid" = "{UID}"
"path.ae_title" = "RIS"
"path.requester" = "RIS"
"""


def described(door):  # noqa: F811
    return door.get("/openapi.json").json()


@pytest.mark.parametrize("route", DICOM_ROUTES, ids=lambda r: f"{r.method} {r.path}")
def test_a_transaction_is_described(route):
    told = described_route(route)
    codes = {int(code) for code in told["responses"]}
    assert set(route.success) <= codes
    assert {400, 401, 403, 406, 413, 415, 429} <= codes
    assert ("requestBody" in told) is bool(route.body)
    assert route.clause in told["description"]
    assert {p["name"] for p in told["parameters"]} >= {"accept", "charset", *route.query}


def test_every_parameter_of_a_transaction_is_in_the_table():
    named = {name for route in DICOM_ROUTES for name in route.query}
    assert {"accept", "charset", *named} == set(WEB_PARAMETERS)


@pytest.mark.parametrize("path", ["", "/"])
def test_capabilities_are_the_description(door, path):  # noqa: F811
    """T-WEB-15."""
    assert door.request("OPTIONS", path).json() == described(door)


def test_operations_have_names_of_their_own(door):  # noqa: F811
    names = [
        one["operationId"] for path in described(door)["paths"].values() for one in path.values()
    ]
    assert len(names) == len(set(names)) == len(DICOM_ROUTES)


@pytest.mark.parametrize("seed", [1, 2])
def test_schemathesis_finds_nothing(appliance, door, tmp_path, seed):  # noqa: F811
    """Of its checks one is left out: data that fit the JSON model may be no workitem (400)."""
    create(door)
    data = creation().to_json_dict()
    made = door.post(f"{MPPS_PATH}/{UID}", json=[data], headers=JSON)
    assert made.status_code == 201, made.text
    folder = tmp_path / "schemathesis"
    folder.mkdir()
    (folder / "schemathesis.toml").write_text(SETTINGS)
    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"), "run",
            f"{door.base_url}openapi.json",
            "--header", f"Authorization: {door.headers['Authorization']}",
            "--checks", "all", "--exclude-checks", "positive_data_acceptance",
            "--phases", "coverage,fuzzing", "--max-examples", "15",
            "--seed", str(seed), "--generation-database", "none", "--no-color",
        ],
        cwd=folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, "NO_PROXY": "*", "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert f"Tested: {len(DICOM_ROUTES)}" in done.stdout
    assert door.get(f"/workitems/{UID}").status_code == 200
    [step] = door.get(f"{MPPS_PATH}/{UID}").json()
    assert step["00100010"] == data["00100010"]
