"""The archive asked for instances and for its commitment; results told (PS3.4 C, J)."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from minris import log
from minris.access.devices import AccessRules, written_for
from minris.config.ini import Config, Device
from minris.dataset.elements import (
    ElementIndex,
    Malformed,
    encode_text,
    encoded,
    sequence_elements,
    text_elements,
)
from minris.dataset.recode import recode
from minris.dataset.search import to_syntax
from minris.dataset.text import UTF_8
from minris.dimse.senders import (
    PASSING_FAILURES,
    address_of,
    open_as_scp,
    request_command,
    send_request,
)
from minris.images.commitment import Result
from minris.images.references import Evidence, Reference
from minris.standard.commitment import COMMITMENT_EVENTS, RETRIEVABLE
from minris.standard.dictionary import tag_of
from minris.standard.status import Status
from minris.standard.uids import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, STUDY_ROOT_FIND
from minris.upper_layer.association import Association
from minris.upper_layer.caller import Caller, DeliveryError


class ArchiveSearch:
    """Looks for instances in an archive by C-FIND (PS3.4 C, Study Root).

    Within their study and series where these are known; else by instance UIDs alone, where the
    archive's device allows relational queries
    """

    AT_ONCE = 100  # UIDs in one query
    LONGEST = 300.0  # seconds for one request

    def __init__(self, config: Config) -> None:
        self.config = config

    async def __call__(self, archive: Device, references: list[Reference]) -> Evidence:
        """Raises DeliveryError where it is not reached or refuses a query"""
        address_of(archive, archive.ae_title)
        within = [one for one in references if one.study_instance_uid]
        alone = [one for one in references if not one.study_instance_uid]
        unchecked = frozenset(
            () if archive.relational_queries else (one.sop_instance_uid for one in alone)
        )
        found: dict[str, tuple[str, ...]] = {}
        if within or (alone and archive.relational_queries):
            async with self._asking(archive) as caller:
                await self._within_studies(caller, within, found)
                if archive.relational_queries:
                    await self._alone(caller, [one.sop_instance_uid for one in alone], found)
        wanted = frozenset(one.sop_instance_uid for one in references)
        seen = {uid: (found[uid][0], archive.ae_title) for uid in wanted & found.keys()}
        places = {uid: found[uid][1:] for uid in seen if all(found[uid][:3])}
        return Evidence(seen, wanted - seen.keys() - unchecked, unchecked, places=places)

    async def count(self, archive: Device, studies: list[str]) -> dict[str, int]:
        """How many images the archive has of each of some studies, 1 where it does not say."""
        counts: dict[str, int] = {}
        async with self._asking(archive) as caller:
            for start in range(0, len(studies), self.AT_ONCE):
                some = "\\".join(studies[start : start + self.AT_ONCE])
                answers = await self._ask(caller, "STUDY", StudyInstanceUID=some,
                                          NumberOfStudyRelatedInstances="")  # fmt: skip
                for one in answers:
                    text = one.get("NumberOfStudyRelatedInstances").strip()
                    number = int(text) if re.fullmatch("[0-9]{1,9}", text) else 1
                    counts[one.get("StudyInstanceUID")] = number
        return {study: counts[study] for study in studies if study in counts}

    @contextlib.asynccontextmanager
    async def _asking(self, archive: Device) -> AsyncIterator[Caller]:
        """An association for queries. Raises DeliveryError"""
        caller, address = Caller(30.0), address_of(archive, archive.ae_title)
        ours = self.config.dicom.ae_title
        await caller.open(address, ours, archive.ae_title, ((STUDY_ROOT_FIND, None),))
        try:
            if STUDY_ROOT_FIND not in caller.accepted.contexts:
                raise DeliveryError("the archive takes no queries (Study Root FIND)")
            async with asyncio.timeout(self.LONGEST):
                yield caller
        except TimeoutError:
            raise DeliveryError("its answers have no end") from None
        finally:
            await caller.release()

    async def _within_studies(
        self, caller: Caller, references: list[Reference], found: dict[str, tuple[str, ...]]
    ) -> None:
        wanted: dict[str, dict[str, set[str]]] = {}
        for one in references:
            of_study = wanted.setdefault(one.study_instance_uid, {})
            of_study.setdefault(one.series_instance_uid, set()).add(one.sop_instance_uid)
        for study, series in wanted.items():
            if "" in series:  # not known of all
                answers = await self._ask(caller, "SERIES", StudyInstanceUID=study,
                                          SeriesInstanceUID="")  # fmt: skip
                series = {one.get("SeriesInstanceUID"): set() for one in answers}
            for uid, images in sorted(series.items()):
                place = {"StudyInstanceUID": study, "SeriesInstanceUID": uid}
                if 0 < len(images) <= self.AT_ONCE:  # a few of a series that may be long
                    found |= await self._images(caller, "\\".join(sorted(images)), **place)
                if not images or images - found.keys():
                    found |= await self._images(caller, "", **place)

    async def _alone(
        self, caller: Caller, uids: list[str], found: dict[str, tuple[str, ...]]
    ) -> None:
        for start in range(0, len(uids), self.AT_ONCE):
            found |= await self._images(caller, "\\".join(uids[start : start + self.AT_ONCE]))

    async def _images(self, caller: Caller, uids: str, **keys: str) -> dict[str, tuple[str, ...]]:
        """Class, study, series and availability of each of some images that are found."""
        places = {"StudyInstanceUID": "", "SeriesInstanceUID": ""}
        asked = places | keys
        answers = await self._ask(caller, "IMAGE", SOPInstanceUID=uids, SOPClassUID="",
                                  RetrieveAETitle="", InstanceAvailability="", **asked)  # fmt: skip
        return {
            one.get("SOPInstanceUID"): (
                one.get("SOPClassUID"), *(one.get(key) or asked[key] for key in places),
                one.get("InstanceAvailability") or "ONLINE",
            )
            for one in answers
            # an answer names a class or who has it (PS3.4 C.4.1.1.3.2); else it is our own question
            if (one.get("SOPClassUID") or one.get("RetrieveAETitle"))
            and one.get("InstanceAvailability") in ("", *RETRIEVABLE)
        }  # fmt: skip

    @staticmethod
    async def _ask(caller: Caller, level: str, **keys: str) -> list[ElementIndex]:
        context = caller.accepted.contexts[STUDY_ROOT_FIND]
        keys["QueryRetrieveLevel"] = level
        elements = {tag_of(keyword): encode_text(keyword, text) for keyword, text in keys.items()}
        data = to_syntax(encoded(elements), context.explicit)
        answers = await caller.find(context, STUDY_ROOT_FIND, data)

        def decode() -> list[ElementIndex]:
            return [ElementIndex(recode(one, context.explicit, UTF_8)) for one in answers]

        try:
            return await asyncio.to_thread(decode)  # thousands would hold up the loop
        except Malformed as error:
            raise DeliveryError(f"its answer cannot be read: {error}") from None


class CommitmentRequester:
    """Passes a request for storage commitment on to the archive, as SCU (PS3.4 J.3.2)."""

    def __init__(self, config: Config) -> None:
        self.config = config

    async def __call__(self, archive: Device, uid: str, references: list[Reference]) -> None:
        """N-ACTION under a Transaction UID; the archive calls us with its report. DeliveryError"""
        address = address_of(archive, archive.ae_title)
        items = [
            text_elements(ReferencedSOPClassUID=one.sop_class_uid,
                          ReferencedSOPInstanceUID=one.sop_instance_uid)
            for one in references
        ]  # fmt: skip
        sequence = sequence_elements(ReferencedSOPSequence=items)
        data = bytes(text_elements(TransactionUID=uid).merged(sequence))
        caller, ours = Caller(30.0), self.config.dicom.ae_title
        await caller.open(address, ours, archive.ae_title, ((STORAGE_COMMITMENT, None),))
        try:
            context = caller.accepted.contexts.get(STORAGE_COMMITMENT)
            if not context:
                raise DeliveryError("the archive takes no requests for storage commitment")
            fields = await send_request(
                caller, context, archive, data, "N-ACTION", STORAGE_COMMITMENT,
                STORAGE_COMMITMENT_INSTANCE, MessageID=1, ActionTypeID=1,
            )  # fmt: skip
            if (status := fields["Status"]) != Status.SUCCESS:
                words = f"the archive answers {status:04X} to our request for commitment"
                raise DeliveryError(words)
        finally:
            await caller.release()


class CommitmentSender:
    """Tells the result of a storage commitment by N-EVENT-REPORT, as SCP (PS3.4 J.3.3).

    associations  gives those that are open to us
    """

    def __init__(
        self, access: Callable[[], AccessRules], associations: Callable[[], Iterable[Association]]
    ) -> None:
        self.access, self.associations = access, associations

    async def __call__(self, commitment: Any, result: Result) -> None:
        """On an association of ours, from the AE title that was called. Raises DeliveryError

        On the requester's own one first, where its device wants that
        """
        device = self.access().device(commitment.requester)
        address_of(device, commitment.requester)
        told = text_elements(
            TransactionUID=commitment.transaction_uid, RetrieveAETitle=result.archive
        )
        data = bytes(ElementIndex(result.data).merged(told))
        if device.report_on_same_association and await self._on_same(
            commitment, device, data, result
        ):
            return
        ours, theirs = commitment.called, commitment.requester
        caller = await open_as_scp(device, ours, theirs, STORAGE_COMMITMENT, "storage commitment")
        try:
            fields = await send_request(
                caller,
                caller.accepted.contexts[STORAGE_COMMITMENT],
                device,
                data,
                "N-EVENT-REPORT",
                STORAGE_COMMITMENT,
                STORAGE_COMMITMENT_INSTANCE,
                MessageID=1,
                EventTypeID=COMMITMENT_EVENTS[result.all_good],
            )
            status = fields["Status"]
            if status in PASSING_FAILURES:
                raise DeliveryError(f"it answers {status:04X}")
            if status != Status.SUCCESS:  # it has heard, and knows nothing of it
                log.warning("commitment %s: answered %04X", commitment.transaction_uid, status)
        finally:
            await caller.release()

    async def _on_same(self, commitment: Any, device: Device, data: bytes, result: Result) -> bool:
        """Whether the requester took it on an association that it has open (PS3.4 J.3.3.1.2)."""
        for association in self.associations():
            peer = association.peer
            if not peer or (peer.calling, peer.called) != (commitment.requester, commitment.called):
                continue
            of_class = [context for context in peer.contexts.values()
                        if context.abstract_syntax == STORAGE_COMMITMENT]  # fmt: skip
            if not of_class or STORAGE_COMMITMENT in peer.of_providers:
                continue  # there it is we who are the SCU (PS3.7 D.3.3.4)
            written = written_for(device, data, of_class[0].explicit)
            command = request_command(
                "N-EVENT-REPORT", STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, True,
                MessageID=Association.ASKED_ID, EventTypeID=COMMITMENT_EVENTS[result.all_good],
            )  # fmt: skip
            status = await association.ask(of_class[0], command, written)
            return status is not None and status not in PASSING_FAILURES
        return False
