"""Times in which a device has no exams: service, absence, a holiday."""

from minris.access.context import Context, audit, device_of
from minris.dataset.times import is_date
from minris.orders.diary import DAY_MINUTES, day_of_da
from minris.standard.status import Message, Refusal, Status
from minris.store.models import BlockedTime
from minris.store.rows import erase, first_row, insert_row

LONGEST_DAYS, LONGEST_REASON = 366, 200
KEPT_DAYS = 31  # after its last day


def block_time(
    ctx: Context, ae_title: str, first: str, last: str, begins: int, ends: int, reason: str
) -> int:
    """Block a time of a device, each day (DA) from the first to the last; return the row id.

    begins, ends  minutes since midnight
    Refuses  0106 if the device is not registered, the days or times are no span, or too long
    """
    device, reason = device_of(ctx, ae_title), " ".join(reason.split())
    problem = None
    if not device:
        problem = Message("Choose a device")
    elif not (is_date(first) and is_date(last) and first <= last):
        problem = Message("The last day is before the first")
    elif (day_of_da(last) - day_of_da(first)).days >= LONGEST_DAYS:
        problem = Message("A time can be blocked for a year at most")
    elif not 0 <= begins < ends <= DAY_MINUTES:
        problem = Message("The end is not after the begin")
    elif len(reason) > LONGEST_REASON:
        problem = Message("The reason is longer than {longest} characters", longest=LONGEST_REASON)
    if problem or not device:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, problem)
    row_id = insert_row(
        BlockedTime, ae_title=device.ae_title, first=first, last=last, begins=begins, ends=ends,
        reason=reason, created_at=ctx.stamp(),
    )  # fmt: skip
    audit(ctx, "time blocked", device.name, f"{first}-{last} {begins}-{ends} {reason}")
    return row_id


def get_blocked(row_id: int) -> BlockedTime:
    """A blocked time. Refuses 0112."""
    row = first_row(BlockedTime, "id = ?", row_id)
    if not row:
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("This time is not blocked any more"))
    return row


def unblock_time(ctx: Context, row_id: int) -> None:
    """Take away a blocked time. Refuses 0112."""
    row = get_blocked(row_id)
    erase("blocked_time WHERE id = ?", row_id)
    about = f"{row.first}-{row.last} {row.begins}-{row.ends} {row.reason}"
    audit(ctx, "time unblocked", row.ae_title, about)


def purge_blocked(ctx: Context) -> int:
    """Erase the blocked times that are long over; return their number."""
    return erase("blocked_time WHERE last < ?", ctx.stamp(days=-KEPT_DAYS)[:10].replace("-", ""))
