"""Items and small data sets that several services send: codes, reasons, notifications."""

import itertools

from minris.dataset.checks import well_formed
from minris.dataset.elements import EMPTY, ElementIndex, sequence_elements, text_elements
from minris.standard.status import Message, Refusal, Status
from minris.standard.ups import UPS_CANCELLATION_REASONS, WORKITEM_CODES


def code_item(value: str, meaning: str, scheme: str = "DCM") -> bytes:
    """An item of a code sequence (PS3.3 Table 8.8-1)."""
    kind = "CodeValue" if len(value) <= 16 else "LongCodeValue"
    code = {kind: value, "CodingSchemeDesignator": scheme, "CodeMeaning": meaning[:64]}
    return bytes(text_elements(**code))


def workitem_code(code: str) -> bytes:
    """An item with a code of WORKITEM_CODES."""
    scheme, meaning = WORKITEM_CODES[code]
    return code_item(code, meaning, scheme)


def cancellation_reason(remark: str, code: str) -> ElementIndex:
    """The reason for a cancellation: remark, and key of UPS_CANCELLATION_REASONS. Refuses 0106."""
    if code not in UPS_CANCELLATION_REASONS:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("There is no such reason"))
    item = code_item(code, UPS_CANCELLATION_REASONS[code])
    codes = sequence_elements(ProcedureStepDiscontinuationReasonCodeSequence=[item])
    texts = text_elements(ReasonForCancellation=remark.strip()) if remark.strip() else EMPTY
    return well_formed(texts.merged(codes))


def availability_data(
    study: str, rows_: list[tuple[str, ...]], of: list[ElementIndex]
) -> ElementIndex:
    """The data set of an Instance Availability Notification (PS3.4 Table R.3.2-1).

    rows_  instance, Retrieve AE Title, class, study, series, availability; ordered by series
    of     items of Referenced Performed Procedure Step Sequence
    """
    series = []
    for uid, of_series in itertools.groupby(rows_, key=lambda row: row[4]):
        instances = [
            text_elements(ReferencedSOPClassUID=row[2], ReferencedSOPInstanceUID=row[0],
                          InstanceAvailability=row[5], RetrieveAETitle=row[1])
            for row in of_series
        ]  # fmt: skip
        sequence = sequence_elements(ReferencedSOPSequence=instances)
        series.append(text_elements(SeriesInstanceUID=uid).merged(sequence))
    steps = sequence_elements(ReferencedPerformedProcedureStepSequence=of)
    images = sequence_elements(ReferencedSeriesSequence=series)
    return text_elements(StudyInstanceUID=study).merged(steps, images)
