"""Query the archive for instances (PS3.4 C)."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterable

from minris.config.ini import Config, Device
from minris.dataset.elements import ElementIndex, Malformed, encode_text, encoded
from minris.dataset.recode import recode
from minris.dataset.search import to_syntax
from minris.dataset.text import UTF_8
from minris.dimse.senders import known_device
from minris.images.references import Evidence, Reference
from minris.standard.commitment import RETRIEVABLE
from minris.standard.dictionary import tag_of
from minris.standard.status import Message
from minris.standard.uids import STUDY_ROOT_FIND
from minris.upper_layer.caller import Caller, DeliveryError
from minris.upper_layer.tls import way_to


class ArchiveSearch:
    """Looks for instances in an archive by C-FIND (PS3.4 C, Study Root).

    It searches within study and series if known, else by instance UIDs alone, if the archive's
    device allows relational queries.
    """

    AT_ONCE = 100  # maximum of UIDs per query
    LONGEST = 300.0  # unit: seconds; per request

    def __init__(self, config: Config) -> None:
        self.config = config

    async def __call__(self, archive: Device, references: list[Reference]) -> Evidence:
        """Return which references the archive has. Raises DeliveryError.

        Without references it is only asked for an association.
        """
        known_device(archive, archive.ae_title)
        within = [one for one in references if one.study_instance_uid]
        alone = [one.sop_instance_uid for one in references if not one.study_instance_uid]
        unchecked = frozenset(() if archive.relational_queries else alone)
        alone = alone if archive.relational_queries else []
        found: dict[str, tuple[str, ...]] = {}
        if within or alone or not references:
            async with self._asking(archive) as caller:
                await self._within_studies(caller, within, found)
                for start in range(0, len(alone), self.AT_ONCE):
                    uids = "\\".join(alone[start : start + self.AT_ONCE])
                    found |= await self._images(caller, uids)
        wanted = frozenset(one.sop_instance_uid for one in references)
        seen = {uid: (found[uid][0], archive.ae_title) for uid in wanted & found.keys()}
        places = {uid: found[uid][1:] for uid in seen if all(found[uid][:3])}
        return Evidence(seen, wanted - seen.keys() - unchecked, unchecked, places=places)

    async def count(self, archive: Device, studies: list[str]) -> dict[str, int]:
        """Return the number of images per study that the archive has; 1 if it does not say."""
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

    async def identifiers(self, archive: Device, keyword: str, patterns: Iterable[str]) -> set[str]:
        """Return the values of a key of its studies that match patterns. Raises DeliveryError."""
        found: set[str] = set()
        async with self._asking(archive) as caller:
            for pattern in patterns:
                keys = {"StudyInstanceUID": "", keyword: pattern}
                found |= {one.get(keyword) for one in await self._ask(caller, "STUDY", **keys)}
        return found

    @contextlib.asynccontextmanager
    async def _asking(self, archive: Device) -> AsyncIterator[Caller]:
        """An association for queries. Raises DeliveryError."""
        caller, ours = Caller(30.0), self.config.dicom.ae_title
        way = way_to(self.config, known_device(archive, archive.ae_title))
        proposed = ((STUDY_ROOT_FIND, None),)
        await caller.open(ours=ours, theirs=archive.ae_title, proposed=proposed, **way)
        try:
            if STUDY_ROOT_FIND not in caller.accepted.contexts:
                raise DeliveryError("the archive accepts no queries (Study Root FIND)")
            async with asyncio.timeout(self.LONGEST):
                yield caller
        except TimeoutError:
            raise DeliveryError("its answers take too long") from None
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
            if "" in series:  # unknown for some
                answers = await self._ask(caller, "SERIES", StudyInstanceUID=study,
                                          SeriesInstanceUID="")  # fmt: skip
                series = {one.get("SeriesInstanceUID"): set() for one in answers}
            for uid, images in sorted(series.items()):
                place = {"StudyInstanceUID": study, "SeriesInstanceUID": uid}
                if 0 < len(images) <= self.AT_ONCE:  # a few of a possibly long series
                    found |= await self._images(caller, "\\".join(sorted(images)), **place)
                if not images or images - found.keys():
                    found |= await self._images(caller, "", **place)

    async def _images(self, caller: Caller, uids: str, **keys: str) -> dict[str, tuple[str, ...]]:
        """Return SOP class, study, series and availability of the images found, by UID."""
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
            # PS3.4 C.4.1.1.3.2: an answer has a class or Retrieve AE Title, else it echoes our keys
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
            return await asyncio.to_thread(decode)  # thousands would block the loop
        except Malformed as error:
            raise DeliveryError(Message("cannot decode its answer: {error}", error=error)) from None
