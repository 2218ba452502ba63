"""Moving an exam to another time or device: by a button, or by drawing it in the calendar."""

import datetime
import re

from minris.dataset.elements import ElementIndex
from minris.dataset.times import shown_date
from minris.orders.diary import free_days, in_the_way, minute_of_day, minutes_of
from minris.orders.lookup import step_row
from minris.orders.scheduling import move_to
from minris.pages.asking import exam_words
from minris.pages.frame import PageRequest
from minris.pages.language import booked_words, clock, day_of
from minris.pages.template import template
from minris.seen import mark_of
from minris.standard.status import Message, Refusal, Status

MOVE_PAGE = template("day/move.html")
DAYS = 5  # shown at once


def move_page(p: PageRequest, row_id: int) -> str:
    """GET /step/…/move: the free times of the devices that can do an exam, as buttons."""
    row = p.read(step_row, row_id)
    index = ElementIndex(bytes(row.data))
    first = max(p.day("date") or row.start_date, p.ctx.today())
    day, minutes = day_of(first), p.read(minutes_of, p.ctx, bytes(row.data))
    devices = [d for d in p.devices if d.role == "modality" and d.modality == row.modality]
    free: dict[str, list[tuple[str, str, list[str]]]] = {}
    for device in devices:
        for date, times in p.read(
            free_days, p.ctx, device.ae_title, f"{day:%Y%m%d}", DAYS, minutes, row_id
        ):
            shown = (device.ae_title, device.name, list(map(clock, times)))
            free.setdefault(date, []).append(shown)
    offered = [(shown_date(date), p.t.date(date), of_day) for date, of_day in free.items()]
    shift = datetime.timedelta(days=DAYS)
    back = f"{day - shift}" if first > p.ctx.today() else ""
    return p.show(
        MOVE_PAGE, Message("Move exam"), exam=exam_words(p.t, index), row_id=row_id, offered=offered,
        mark=mark_of(row.status, row.study_instance_uid), before=back, after=f"{day + shift}",
        day=f"{day}", many=len(devices) > 1,
    )  # fmt: skip


def post_move(p: PageRequest, row_id: int) -> str:
    """POST /step/…/move: move an exam to a day, time and device. Refuses 0106, 0110.

    The button that was pressed is `to`: day, time and AE title, with blanks between.
    """
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d) (\S.*)", p.form("to"))
    device = p.device(found[3]) if found else None
    if not found or not device:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("Choose a device and a time"))
    date, time = found[1].replace("-", ""), found[2].replace(":", "")
    p.write_seen(("step", row_id), "reschedule", move_to, row_id, device.ae_title, date, time)
    taken, _ = p.read(in_the_way, p.ctx, device.ae_title, date, minute_of_day(time), "", row_id)
    words = exam_words(p.t, ElementIndex(bytes(p.read(step_row, row_id).data)))
    overlap = p.t("Overlaps with {exams} on {device}.", exams=booked_words(p.t, taken),
                  device=device.name)  # fmt: skip
    words += f". {overlap}" if taken else "."
    return p.tell(p.came_from(f"/step/{row_id}"), words, f"step {row_id}")
