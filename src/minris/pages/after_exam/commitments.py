"""Storage commitment: which images are in the archive."""

import datetime
import urllib.parse
from typing import Any

from minris.access.context import archive_of
from minris.images.arrivals import incomplete_arrivals
from minris.images.commitment import (
    commitment_by_uid,
    commitment_counts,
    judged_instances,
    recent_commitments,
    try_commitment_again,
)
from minris.pages.frame import Action, PageRequest, Part, Row
from minris.pages.language import Translator
from minris.standard.commitment import COMMITTED, FAILURE_REASONS
from minris.standard.status import Message

COMMITMENT_STATES = {
    "asked": Message("checking"),
    "judged": Message("pending"),
    "told": Message("notified"),
    "given up": Message("could not be notified"),
    "dropped": Message("dropped"),
}


def verdict_words(t: Translator, commitment: Any, good: int, bad: int, open_: int) -> str:
    """Return what the result of a request means for the person at the machine."""
    if commitment.state == "dropped":
        return ""
    found = (
        Message("{count} images confirmed in the archive: they may be deleted at the machine",
                count=good),
        Message("{count} images not confirmed in the archive: keep them on the machine",
                count=bad),
        Message("{count} images not checked yet: keep them on the machine", count=open_),
    )  # fmt: skip
    return "; ".join(t(words) for words in found if words.values["count"])


def commitments_page(p: PageRequest) -> str:
    """GET /commitments: the list of commitment requests with their results."""
    t, asked = p.t, []
    for one, *counts in p.read(recent_commitments):
        cells = (p.at(one.created_at), one.requester, verdict_words(t, one, *counts),
                 t(COMMITMENT_STATES[one.state]), t.said(one.problem), one.transaction_uid)  # fmt: skip
        link = (
            "" if one.repeats else f"/commitment/{urllib.parse.quote(one.transaction_uid, safe='')}"
        )
        asked.append(Row(cells, link, commitment_actions(t, one)))
    part = p.listed("Asked | Asked by | Result | State | Problem | Transaction UID", asked,
                    "No machine has asked for storage commitment yet. Where one does, its images"
                    " and the answers appear here.")  # fmt: skip
    return p.listing("Images in the archive", [part, missing_images(p)], intro=archive_words(p))


def missing_images(p: PageRequest) -> Part:
    """Return the list of recent exams with images that are not known to be in the archive."""
    t = p.t
    exams = [
        Row((p.at(one.ended_at),
             t.name(one.performed.get("PatientName")), one.performed.get("PatientID"),
             one.performed.get("PerformedProcedureStepDescription"),
             one.performed.get("PerformedStationAETitle"),
             t("{number} of {count} images", number=len(one.references) - len(one.missing),
               count=len(one.references))),
            f"/step/{one.step_id}" if one.step_id else "/unscheduled")
        for one in p.read(incomplete_arrivals, p.ctx)
    ]  # fmt: skip
    heading = t("Exams of the last two days with images missing in the archive")
    return p.listed("Ended | Patient | Patient ID | Exam | Device | In the archive", exams,
                    "No images are missing.", heading)  # fmt: skip


def archive_words(p: PageRequest) -> str:
    """Return which archive is queried, and the outcome of the last query."""
    t, archive = p.t, archive_of(p.ctx)
    reached = p.web.box.commitments.line.of(archive)
    if not archive and any(device.role == "archive" for device in p.ctx.devices):
        return t("Several archives are registered: no images can be confirmed until "
                 "[commitment] archive names one.")  # fmt: skip
    if not archive:
        return t("No archive is registered, so no images can be confirmed. Register it as a "
                 "device with the role archive.")  # fmt: skip
    words = t("Archive checked: {ae}.", ae=archive.ae_title)
    if not reached.at:
        return words
    at, since = (
        t.moment(datetime.datetime.fromtimestamp(one, p.ctx.config.zone))
        for one in (reached.at, reached.since)
    )
    if not reached.problem:
        return f"{words} {t('At {at} it answered.', at=at)}"
    failed = t("No answer since {since}: {problem}. No further images can be confirmed until "
               "it answers. Last query: {at}.", since=since, at=at, problem=reached.problem)  # fmt: skip
    return f"{words} {failed}"


def commitment_actions(t: Translator, commitment: Any) -> tuple[Action, ...]:
    """Return the button to retry now, if the archive's or the machine's answer is pending."""
    waits = commitment.state == "asked" or (
        commitment.door == "dimse" and commitment.state in ("judged", "given up")
    )
    if not waits or commitment.repeats:
        return ()
    return (Action("/commitments", t("Try again now"), (("uid", commitment.transaction_uid),)),)


def commitment_page(p: PageRequest, uid: str) -> str:
    """GET /commitment/…: the result of each image."""
    t, one = p.t, p.read(commitment_by_uid, uid)
    words = {"": t("is not checked yet"), COMMITTED: t("is in the archive")}
    words |= {verdict: t(reason) for verdict, reason in FAILURE_REASONS.items()}
    images = [
        Row((each.sop_instance_uid, words[each.verdict], each.evidence))
        for each in p.read(judged_instances, one.id)
    ]
    part = p.listed("Image | Result | According to", images)
    counts = p.read(commitment_counts, [one.id])[one.id]
    links = [("/commitments", t("All requests"))]
    intro = verdict_words(t, one, *counts)
    return p.listing("Images in the archive", [part], intro=intro, links=links)


def post_commitments(p: PageRequest) -> str:
    """POST /commitments: query the archive or notify the machine now."""
    p.write(try_commitment_again, p.form("uid"))
    return p.tell("/commitments", p.t("Retrying now."))
