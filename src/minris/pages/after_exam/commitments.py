"""Are they safe?"""

import datetime
from typing import Any

from minris.access.context import Context, archive_of
from minris.images.arrivals import incomplete_arrivals
from minris.images.commitment import (
    commitment_by_uid,
    commitment_counts,
    judged_instances,
    recent_commitments,
    try_commitment_again,
)
from minris.pages.frame import Action, Frame, Part, Row
from minris.pages.language import Translator, shown_instant
from minris.standard.commitment import COMMITTED, FAILURE_REASONS
from minris.standard.status import Message
from minris.web.request import enter

COMMITMENT_STATES = {
    "asked": Message("being judged"),
    "judged": Message("to be told"),
    "told": Message("told"),
    "given up": Message("could not be told"),
    "dropped": Message("dropped"),
}


def verdict_words(t: Translator, commitment: Any, good: int, bad: int, open_: int) -> str:
    """What a judgement means for whoever stands at the machine."""
    if commitment.state == "dropped":
        return ""
    words = []
    for count, one, many in (
        (good, Message("1 image is safe: the machine may delete it"),
         Message("{count} images are safe: the machine may delete them")),
        (bad, Message("1 image is not safe: do not delete it"),
         Message("{count} images are not safe: do not delete them")),
        (open_, Message("1 image is not judged yet: do not delete it"),
         Message("{count} images are not judged yet: do not delete them")),
    ):  # fmt: skip
        if count:
            words.append(t(one) if count == 1 else t(many.key, count=count))
    return "; ".join(words)


class CommitmentPages(Frame):
    """Are they safe?"""

    def commitments(self) -> str:
        """GET /commitments: which images machines have asked about, and what they were told."""
        login, ctx = enter(self.web, self.request, "technologist")
        t, found_rows = self.translator(), []
        for one, *counts in self.web.read(recent_commitments):
            cells = (shown_instant(one.created_at, ctx.config.zone), one.requester,
                     verdict_words(t, one, *counts), t(COMMITMENT_STATES[one.state]), one.problem,
                     one.transaction_uid)  # fmt: skip
            link = "" if one.repeats else f"/commitment/{one.transaction_uid}"
            found_rows.append(Row(cells, link, self._commitment_actions(t, one)))
        columns = (t("Asked"), t("Asked by"), t("Judgement"), t("State"), t("Problem"),
                   t("Transaction UID"))  # fmt: skip
        part = Part("", columns, found_rows, t("No machine has asked whether its images are safe."))
        parts, intro = [part, self._missing_images(t, ctx)], self._archive_words(t, ctx)
        return self.listing("Are they safe?", login, parts, intro=intro)

    def _missing_images(self, t: Translator, ctx: Context) -> Part:
        """Exams of the last days whose images are not all known to be in the archive."""
        found_rows = [
            Row((shown_instant(one.ended_at, ctx.config.zone),
                 t.name(one.performed.get("PatientName")), one.performed.get("PatientID"),
                 one.performed.get("PerformedProcedureStepDescription"),
                 one.performed.get("PerformedStationAETitle"),
                 t("{number} of {count} images", number=len(one.references) - len(one.missing),
                   count=len(one.references))),
                f"/step/{one.step_id}" if one.step_id else "/unscheduled")
            for one in self.web.read(incomplete_arrivals, ctx)
        ]  # fmt: skip
        columns = (t("Ended"), t("Patient"), t("Patient ID"), t("Exam"), t("Device"),
                   t("In the archive"))  # fmt: skip
        heading = t("Exams of the last two days whose images are not all in the archive")
        return Part(heading, columns, found_rows, t("There are none."))

    def _archive_words(self, t: Translator, ctx: Context) -> str:
        """Which archive is asked, and how it was the last time."""
        archive = archive_of(ctx)
        if not archive and any(device.role == "archive" for device in ctx.devices):
            return t("There are several archives: nothing can be called safe until [commitment] archive"
                     " names one.")  # fmt: skip
        if not archive:
            return t("No archive is set: nothing can be called safe. Register it as a device with the"
                     " role archive.")  # fmt: skip
        words, desk = (
            [t("Asked is the archive {ae}.", ae=archive.ae_title)],
            self.web.box.commitments,
        )
        if desk.archive_at:
            at = datetime.datetime.fromtimestamp(desk.archive_at, ctx.config.zone)
            when = {"at": f"{at:%d.%m. %H:%M:%S}", "problem": desk.archive_problem}
            words.append(t("At {at} it failed: {problem}.", **when) if desk.archive_problem
                         else t("At {at} it answered.", **when))  # fmt: skip
        return " ".join(words)

    @staticmethod
    def _commitment_actions(t: Translator, commitment: Any) -> tuple[Action, ...]:
        waits = commitment.state == "asked" or (
            commitment.door == "dimse" and commitment.state in ("judged", "given up")
        )
        fields = (("uid", commitment.transaction_uid),)
        again = waits and not commitment.repeats
        return (Action("/commitments", t("Try again now"), fields),) if again else ()

    def commitment(self, uid: str) -> str:
        """GET /commitment/…: the judgement of each image, in words."""
        login, _ = enter(self.web, self.request, "technologist")
        t, one = self.translator(), self.web.read(commitment_by_uid, uid)
        words = {"": t("is not judged yet"), COMMITTED: t("is safe")}
        words |= {verdict: t(reason) for verdict, reason in FAILURE_REASONS.items()}
        rows_ = [
            Row((each.sop_instance_uid, words[each.verdict], each.evidence))
            for each in self.web.read(judged_instances, one.id)
        ]
        columns = (t("Image"), t("Judgement"), t("Says"))
        counts = self.web.read(commitment_counts, [one.id])[one.id]
        links = [("/commitments", t("All requests"))]
        part, intro = Part("", columns, rows_), verdict_words(t, one, *counts)
        return self.listing("Are they safe?", login, [part], intro=intro, links=links)

    def try_commitment(self) -> str:
        """POST /commitments: ask the archive or tell the machine now."""
        _, ctx = enter(self.web, self.request, "technologist")
        self.web.write(try_commitment_again, ctx, self.form("uid"))
        return self.tell("/commitments", self.translator()("It is tried again now."))
