"""The Chinese resident identity number, an identifier beside the Patient ID (PS3.3 C.2.3)."""

import re

from minris.dataset.elements import ElementIndex, sequence_elements, text_elements
from minris.standard.dictionary import is_date, tag_of

OTHER_IDS = tag_of("OtherPatientIDsSequence")
ISSUER = "CHN resident identity card"  # local: who issues it, Issuer of Patient ID (0010,0021)


def identity_number(index: ElementIndex) -> str:
    """The identity number of a patient, or ""."""
    found = (one for one in index.items(OTHER_IDS) if one.get("IssuerOfPatientID") == ISSUER)
    return next((one.get("PatientID") for one in found), "")


def identity_elements(index: ElementIndex, number: str) -> ElementIndex:
    """A patient's other identifiers with this identity number, or without one."""
    others = [one for one in index.items(OTHER_IDS) if one.get("IssuerOfPatientID") != ISSUER]
    if number:
        others.append(
            text_elements(PatientID=number, IssuerOfPatientID=ISSUER, TypeOfPatientID="TEXT")
        )
    return sequence_elements(OtherPatientIDsSequence=others)


def without_identity_number(index: ElementIndex) -> ElementIndex:
    """A patient's data set as it leaves the patient's record: no machine is told the number."""
    if not identity_number(index):
        return index
    rest = identity_elements(index, "")
    return index.merged(rest) if rest.items(OTHER_IDS) else index.without([OTHER_IDS])


def keep_identity_number(old: ElementIndex, given: ElementIndex) -> ElementIndex:
    """What is given of a patient, so that it loses neither the number nor other identifiers.

    Who gives other identifiers has never seen the number; who gives the number, only that.
    """
    if OTHER_IDS not in given:
        return given
    number = identity_number(given)
    return given.merged(identity_elements(old if number else given, number or identity_number(old)))


def masked_number(number: str) -> str:
    """An identity number for a screen: 110***********002X."""
    return f"{number[:3]}***********{number[-4:]}" if number else ""


def is_masked(text: str) -> bool:
    """Whether a text is what masked_number shows."""
    return bool(re.fullmatch(r"[0-9]{3}\*{11}[0-9]{3}[0-9X]", text))


def looks_like_resident(text: str) -> bool:
    """Whether a text has the form of an identity number, its check digit right or wrong."""
    return bool(re.fullmatch("[0-9]{17}[0-9Xx]", text)) and is_date(text[6:14])
