"""The demo: a day of an invented department."""

import copy
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
timezone = {zone}
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
    Wang^XiaoDong=王^小东           | 19780312 | M   | CT1    | CT       | CT chest          | -70
    Li^Na=李^娜                     | 19900721 | F   | US1    | US       | Abdomen           | -50
    Miller^Anna                     | 19651102 | F   | DX1    | DX       | Chest PA, lateral | -35
    Brown^Emma                      | 19720430 | F   | US1    | US       | Kidneys           | -25
    Garcia^Luis                     | 20010105 | M   | CT1    | CT       | CT abdomen        | -10
    Zhang^Wei=张^伟                 | 19550918 | M   | DX1    | DX       | Left hand         | -5
    Ouyang^Jing=欧阳^静             | 19830627 | F   | US1    | US       | Thyroid           | 15
    Smith^John                      | 19590214 | M   | CT1    | CT       | CT head           | 35
    Sato^Yui                        | 19961108 | F   | DX1    | DX       | Knee, 2 planes    | 60
    """)


def zone_at_ten(now: datetime.datetime) -> str:
    """Return a time zone in which it is between ten and eleven: a department is busy then."""
    hours = 10 - now.astimezone(datetime.UTC).hour
    hours += 24 if hours < -12 else 0
    return f"Etc/GMT{-hours:+}"  # the sign is that of POSIX: west of Greenwich is plus


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


class Reception:
    """The reception of the department, over the JSON API."""

    def __init__(self, web_url: str, token: str) -> None:
        self.url = f"{web_url}/api/worklist"
        self.headers = {
            "Content-Type": "application/dicom+json",
            "Authorization": f"Bearer {token}",
        }

    def send(self, method: str, path: str, items: Any) -> list[ElementIndex]:
        """Send data sets as DICOM JSON; return those of the answer."""
        body = json.dumps(items).encode()
        request = urllib.request.Request(self.url + path, body, self.headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            return [ElementIndex(from_json(item)) for item in json.load(response)]

    def arrived(self, item: Any) -> None:
        """Check in the patient of a worklist item."""
        step = text_elements(ScheduledProcedureStepStatus="ARRIVED")
        change = to_json(sequence_elements(ScheduledProcedureStepSequence=[step]))
        step_id = item.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID
        self.send("PUT", f"/{item.StudyInstanceUID}/{step_id}", [change])


def of_nobody(item: Any) -> Any:
    """Return a worklist item of a patient whom nobody has ordered an exam for."""
    other = copy.deepcopy(item)
    other.StudyInstanceUID = new_uid()
    other.PatientName, other.PatientID, other.AccessionNumber = "Rossi^Marco", "RM-1", ""
    other.PatientBirthDate, other.PatientSex = "19880817", "M"
    other.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID = ""
    return other


def register_all(
    reception: Reception, zone: datetime.tzinfo | None, report: Callable[[str], None]
) -> None:
    """Register the patients of the day."""
    for index in reception.send("POST", "", demo_items(datetime.datetime.now(zone))):
        numbers = f"{index.get('PatientID')}, accession number {index.get('AccessionNumber')}"
        report(f"{shown_name(index.get('PatientName'))}: ID {numbers}")


def leave_at_work(
    machines: dict[str, Modality], lists: dict[str, list[Any]], reception: Reception
) -> None:
    """Leave the department in the middle of its day: a report without an order, waiting patients."""
    dx, walk_in, uid = machines["DX1"], of_nobody(lists["DX1"][1]), new_uid()
    dx.start(walk_in, uid)
    dx.end(walk_in, uid, images=1)
    for item in (lists["CT1"][1], lists["DX1"][1], lists["US1"][2]):
        reception.arrived(item)
    machines["CT1"].start(lists["CT1"][1], new_uid())


def play_day(
    web_url: str, token: str, host: str, port: int, called: str,
    say: Callable[[str], None], pause: float, listen: int = 0,
    zone: datetime.tzinfo | None = None,
) -> None:  # fmt: skip
    """Play the day: reception over the JSON API, the modalities over DICOM.

    It ends in the middle: people wait, one exam runs, one patient is late, one report has no order.

    pause  seconds between two scenes
    zone   the time zone of the department; None: that of the machine
    """

    def scene(words: str) -> None:
        time.sleep(pause)
        say(f"{datetime.datetime.now(zone):%H:%M}  {words}")

    def report(line: str) -> None:
        say(f"       {line}")

    scene(f"Reception registers {len(DEMO_DAY)} patients.")
    reception = Reception(web_url, token)
    register_all(reception, zone, report)
    machines = {
        title: Modality(title, modality, host, port, called, report)
        for title, modality in (("CT1", "CT"), ("DX1", "DX"), ("US1", "US"))
    }
    scene("Each modality tests its connection.")
    for machine in machines.values():
        machine.zone = zone
        machine.echo()
    scene("Each modality queries its worklist; no name is typed.")
    lists = {title: machine.worklist() for title, machine in machines.items()}
    ct, dx, us = (machines[title] for title in ("CT1", "DX1", "US1"))
    scene("Patients come. CT and ultrasound start their exams.")
    uids = {title: new_uid() for title in machines}
    for title in machines:
        reception.arrived(lists[title][0])
    ct.start(lists["CT1"][0], uids["CT1"])
    us.start(lists["US1"][0], uids["US1"])
    scene("CT is done. The X-ray operator picks the wrong entry and discards it:")
    ct.end(lists["CT1"][0], uids["CT1"], images=12)
    dx.start(lists["DX1"][1], uids["DX1"])
    dx.end(lists["DX1"][1], uids["DX1"], reason=INCORRECT_WORKLIST_ENTRY)
    report("The patient is back on the worklist:")
    dx.worklist()
    scene("X-ray starts the right exam. Ultrasound stops: the patient cannot continue.")
    uid = new_uid()
    dx.start(lists["DX1"][0], uid)
    us.end(lists["US1"][0], uids["US1"], reason="110515")
    dx.end(lists["DX1"][0], uid, images=2)
    scene("The 3D workstation finds, claims and completes its workitem.")
    scenario_pull(Workstation("WS1", host, port, called, report, listen=listen))
    scene("X-ray examines somebody who is on no list. Two patients wait; CT examines the next.")
    leave_at_work(machines, lists, reception)
    scene("Still on the worklists:")
    for machine in machines.values():
        machine.worklist()
