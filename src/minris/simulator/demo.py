"""The demo: a day of an invented department."""

import datetime
import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from minris.dataset.dicom_json import from_json, to_json
from minris.dataset.elements import ElementIndex, sequence_elements, text_elements
from minris.dataset.names import shown_name
from minris.simulator.modality import Modality
from minris.simulator.scenarios import scenario_pull
from minris.simulator.workstation import Workstation
from minris.standard.mpps import INCORRECT_WORKLIST_ENTRY
from minris.standard.tables import table
from minris.standard.uids import new_uid

DEMO_CONFIG = """
[clinic]
name = Lakeside Clinic (invented)
[device CT room]
ae_title = CT1
modality = CT
[device X-ray room]
ae_title = DX1
modality = DX
[device Ultrasound]
ae_title = US1
modality = US
character_set = GB18030
[device 3D workstation]
ae_title = WS1
role = workstation
host = 127.0.0.1
port = {listen}
"""
DEMO_DAY = table("""
    name                            | birth    | sex | device | modality | exam              | minutes
    Wang^XiaoDong=王^小东           | 19780312 | M   | CT1    | CT       | CT chest          | 10
    Li^Na=李^娜                     | 19900721 | F   | US1    | US       | Abdomen           | 15
    Miller^Anna                     | 19651102 | F   | DX1    | DX       | Chest PA, lateral | 20
    Zhang^Wei=张^伟                 | 19550918 | M   | DX1    | DX       | Left hand         | 30
    Garcia^Luis                     | 20010105 | M   | CT1    | CT       | CT abdomen        | 45
    Ouyang^Jing=欧阳^静             | 19830627 | F   | US1    | US       | Thyroid           | 60
    """)


def demo_items(now: datetime.datetime) -> list[dict[str, Any]]:
    """Return the patients of the day as DICOM JSON."""
    items = []
    for row in DEMO_DAY:
        at = now + datetime.timedelta(minutes=int(row.minutes))
        step = text_elements(
            ScheduledStationAETitle=row.device, Modality=row.modality,
            ScheduledProcedureStepStartDate=f"{at:%Y%m%d}",
            ScheduledProcedureStepStartTime=f"{at:%H%M}00",
        )  # fmt: skip
        patient = text_elements(
            PatientName=row.name, PatientBirthDate=row.birth, PatientSex=row.sex,
            RequestedProcedureDescription=row.exam,
        )  # fmt: skip
        sequence = sequence_elements(ScheduledProcedureStepSequence=[step])
        items.append(to_json(patient.merged(sequence)))
    return items


def play_day(
    web_url: str, token: str, host: str, port: int, called: str,
    say: Callable[[str], None], pause: float, listen: int = 0,
) -> None:  # fmt: skip
    """Play the day: reception over the JSON API, the modalities over DICOM.

    pause  seconds between two scenes
    """

    def scene(words: str) -> None:
        time.sleep(pause)
        say(words)

    def report(line: str) -> None:
        say(f"       {line}")

    say("08:00  Reception registers six patients.")
    body = json.dumps(demo_items(datetime.datetime.now())).encode()
    headers = {"Content-Type": "application/dicom+json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{web_url}/api/worklist", body, headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        for item in json.load(response):
            index = ElementIndex(from_json(item))
            numbers = f"{index.get('PatientID')}, accession number {index.get('AccessionNumber')}"
            report(f"{shown_name(index.get('PatientName'))}: ID {numbers}")
    machines = {
        title: Modality(title, modality, host, port, called, report)
        for title, modality in (("CT1", "CT"), ("DX1", "DX"), ("US1", "US"))
    }
    scene("08:10  Each modality tests its connection.")
    for machine in machines.values():
        machine.echo()
    scene("08:15  Each modality queries its worklist; no name is typed.")
    lists = {title: machine.worklist() for title, machine in machines.items()}
    ct, dx, us = (machines[title] for title in ("CT1", "DX1", "US1"))
    scene("08:20  CT and ultrasound start their exams.")
    uids = {title: new_uid() for title in machines}
    ct.start(lists["CT1"][0], uids["CT1"])
    us.start(lists["US1"][0], uids["US1"])
    scene("08:30  CT is done. The X-ray operator picks the wrong entry and discards it:")
    ct.end(lists["CT1"][0], uids["CT1"], images=12)
    dx.start(lists["DX1"][1], uids["DX1"])
    dx.end(lists["DX1"][1], uids["DX1"], reason=INCORRECT_WORKLIST_ENTRY)
    report("The patient is back on the worklist:")
    dx.worklist()
    scene("08:35  X-ray starts the right exam. Ultrasound stops: the patient cannot continue.")
    uid = new_uid()
    dx.start(lists["DX1"][0], uid)
    us.end(lists["US1"][0], uids["US1"], reason="110515")
    dx.end(lists["DX1"][0], uid, images=2)
    scene("08:45  Still on the worklists:")
    for machine in machines.values():
        machine.worklist()
    scene("08:50  The 3D workstation finds, claims and completes its workitem.")
    scenario_pull(Workstation("WS1", host, port, called, report, listen=listen))
