"""CONTEXT: who asks, when, and the line that is kept of it."""

import dataclasses
import datetime
import re

import pytest
from conftest import NOON, write_config

from minris.access.context import Actor, Context, audit, audit_digest, utc_now
from minris.config.ini import load_config
from minris.standard.dictionary import value_problem
from minris.standard.status import Refusal, Status
from minris.standard.uids import new_uid
from minris.store.models import Audit, database

SHANGHAI = "[clinic]\ntimezone = Asia/Shanghai\n"


def at(ctx: Context, moment: datetime.datetime) -> Context:
    return dataclasses.replace(ctx, now=lambda: moment)


@pytest.fixture
def in_shanghai(tmp_path):
    """A context of a clinic that is eight hours ahead of UTC, at noon UTC."""
    return Context(load_config(write_config(tmp_path, SHANGHAI)), now=lambda: NOON)


def test_a_device_is_named_with_its_address():
    assert str(Actor("CT1", "192.0.2.11")) == "CT1@192.0.2.11"


def test_a_job_of_our_own_is_named_alone():
    assert str(Actor("minris")) == "minris"


def test_a_context_cannot_be_changed(ctx):
    with pytest.raises(dataclasses.FrozenInstanceError):
        ctx.actor = Actor("MR1")


def test_a_context_for_somebody_else_has_the_same_circumstances(ctx):
    other = ctx.by(Actor("MR1", "192.0.2.12"))
    assert other.actor == Actor("MR1", "192.0.2.12")
    assert (other.config, other.now, other.devices) == (ctx.config, ctx.now, ctx.devices)
    assert ctx.actor == Actor("CT1", "127.0.0.1")


def test_the_clock_of_the_clinic_is_that_of_its_zone(in_shanghai):
    assert in_shanghai.local_now().isoformat() == "2026-07-05T20:00:00+08:00"


def test_today_is_a_day_of_the_clinic(in_shanghai):
    evening = datetime.datetime(2026, 7, 5, 16, 30, tzinfo=datetime.UTC)
    assert in_shanghai.today() == "20260705"
    assert at(in_shanghai, evening).today() == "20260706"


def test_without_a_zone_the_clock_is_that_of_the_machine(tmp_path):
    config = load_config(write_config(tmp_path, "[clinic]\ntimezone =\n"))
    moment = Context(config, now=lambda: NOON).local_now()
    assert moment == NOON
    assert moment.utcoffset() == NOON.astimezone().utcoffset()


def test_a_time_is_kept_in_utc(in_shanghai):
    assert in_shanghai.stamp() == "2026-07-05T12:00:00.000000Z"


def test_a_time_is_kept_in_utc_whatever_clock_it_is_read_from(in_shanghai):
    ahead = NOON.astimezone(datetime.timezone(datetime.timedelta(hours=8)))
    assert at(in_shanghai, ahead).stamp() == "2026-07-05T12:00:00.000000Z"


def test_a_time_may_be_later_or_earlier(ctx):
    assert ctx.stamp(hours=12) == "2026-07-06T00:00:00.000000Z"
    assert ctx.stamp(minutes=-15) == "2026-07-05T11:45:00.000000Z"


def test_times_sort_as_texts(ctx):
    seconds = [0, 0.000001, 0.5, 9, 10, 3600, 86400, 40000000]
    stamps = [ctx.stamp(seconds=number) for number in seconds]
    assert stamps == sorted(stamps)


def test_the_time_is_aware_and_in_utc():
    assert utc_now().utcoffset() == datetime.timedelta(0)


def test_a_new_uid_is_one_of_a_uuid_and_of_no_other():
    """PS3.5 B.2; checklist 8.4: at most 44 characters for a UUID."""
    uids = {new_uid() for _ in range(100)}
    assert len(uids) == 100
    for uid in uids:
        assert re.fullmatch(r"2\.25\.(0|[1-9]\d*)", uid)
        assert len(uid) <= 44
        assert value_problem("UI", uid) is None


def test_an_audit_line_says_when_who_what_and_about_what(ctx):
    audit(ctx, "scheduled", "2.25.10001", "26070500001")
    (line,) = Audit.select().dicts()
    digest = line.pop("digest")
    assert digest == audit_digest("", tuple(line.values())[1:])
    assert line == {
        "id": 1,
        "at": "2026-07-05T12:00:00.000000Z",
        "who": "CT1@127.0.0.1",
        "what": "scheduled",
        "about": "2.25.10001",
        "detail": "26070500001",
    }


def test_an_audit_line_goes_with_the_transaction_that_it_is_about(ctx):
    with pytest.raises(Refusal), database.atomic():
        audit(ctx, "scheduled", "2.25.10001")
        raise Refusal(Status.DUPLICATE_SOP_INSTANCE)
    assert Audit.select().count() == 0
