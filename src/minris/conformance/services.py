"""The DIMSE services in the conformance statement."""

from collections.abc import Mapping

from minris.config.ini import Config
from minris.conformance.document import statement_table
from minris.dataset.matching import WILDCARD_VRS
from minris.outbox import MOST_ABORTS, MOST_REFUSALS, RETRY_AFTER
from minris.standard.attributes import Attribute
from minris.standard.commitment import AVAILABILITY_ATTRIBUTES, FAILURE_REASONS
from minris.standard.mpps import MPPS_ATTRIBUTES, MPPS_EVENTS, MPPS_TRANSITIONS
from minris.standard.status import Status
from minris.standard.uids import UPS_FILTERED_SUBSCRIPTION, UPS_GLOBAL_SUBSCRIPTION, UPS_PUSH
from minris.standard.ups import (
    EVENT_TYPES,
    SUBSCRIPTION_TRANSITIONS,
    UPS_ACTIONS,
    UPS_ATTRIBUTES,
    UPS_TRANSITIONS,
)
from minris.standard.worklist import MWL_ATTRIBUTES


def statement_worklist(config: Config) -> str:
    """The worklist's keys and rules."""
    lines = [
        (*named(path, one), one.vr, matching_kinds(one), one.cells["return"])
        for path, one in MWL_ATTRIBUTES.items()
    ]
    hidden = ", ".join(sorted(config.dicom.hide_steps)) or "none"
    return f"""
        ### 5.1 Modality worklist (PS3.4 annex K)
        {statement_table(("Attribute", "Tag", "VR", "Matching", "Return type"), *lines)}
        Names match in any case and without accents; a name with an ideographic group is also found
          in any spelling of its Latin group: spaces, carets, tones, ü as lü, lv or lyu.
        Other texts match exactly, with * and ? as wildcards. Wildcards in names stand for any
          characters of a component group, carets included. There is no fuzzy matching.
        A start date range and a start time range of the same form are one continuous interval.
        The end of a time range covers its whole unit: 1000-1800 includes 18:00:59.
        Several values in a key that is not a UID, an invalid date or range, and two items in a
          sequence key are refused with A900.
        Steps in these states are not shown, whatever the status key says: {hidden}.
        More than {config.dicom.answer_limit} matches end with A700 after as many answers; a device
          may have a lower limit.
        An error of this system ends a query with C000 and an Error Comment, never with 0110 (table
          K.4-2); a query larger than this system accepts ends with A700.
        A requested attribute that is not in the table above makes all answers FF01.
        Query/Retrieve Level (0008,0052) in a query is ignored. Priority (0000,0700) is ignored.
          Timezone Offset From UTC (0008,0201) is ignored in a query; if requested, the answer has
          that of the clinic.
        Extended negotiation is answered: neither fuzzy matching nor timezone adjustment.
        """


def named(path: tuple[int, ...], attribute: Attribute) -> tuple[str, str]:
    """Keyword and tag of an attribute, > before it for each sequence around it."""
    tag = f"({attribute.tag >> 16:04X},{attribute.tag & 0xFFFF:04X})"
    return ">" * (len(path) - 1) + attribute.keyword, tag


def transition_block(table: Mapping[tuple[str, str], Status | str]) -> str:
    """A transition table: what comes of an event in a state."""
    return statement_table(("Event", "State", "Outcome"), *(
        (event, state, f"{outcome:04X}" if isinstance(outcome, Status) else outcome)
        for (event, state), outcome in table.items()
    ))  # fmt: skip


def matching_kinds(attribute: Attribute) -> str:
    """How a key is matched, in words."""
    if attribute.cells["match"] == "-":
        return "not matched"
    vr = attribute.vr.encode()
    kinds = {b"SQ": "sequence", b"UI": "list of UIDs", b"DA": "single value, range",
             b"TM": "single value, range"}  # fmt: skip
    required = "required" if attribute.cells["match"] == "R" else "optional"
    kind = kinds.get(vr, "single value, wildcard" if vr in WILDCARD_VRS else "single value")
    return f"{required}: {kind}"


def statement_mpps(config: Config) -> str:
    """The attributes and rules of performed steps."""
    lines = [(*named(path, one), *one.cells.values()) for path, one in MPPS_ATTRIBUTES.items()]
    head = ("Attribute", "Tag", "N-CREATE", "N-SET", "Final", "N-GET")
    absent = "refused with 0120" if config.dicom.strict_mpps else "taken as empty and noted"
    discontinued = "refused" if config.dicom.strict_mpps else "taken and noted"
    return f"""
        ### 5.2 Modality performed procedure step (PS3.4 F.7, F.8)
        {statement_table(head, *lines)}
        An absent type 2 attribute is {absent}. DISCONTINUED without end or series is
          {discontinued}.
        Attributes beyond the table are stored.
        An attribute that may not be set is refused with 0105 where it differs from what is stored,
          and ignored where it does not.
        N-SET after the end is refused with 0110 and Error ID A710.
        An N-CREATE without SOP Instance UID is assigned one.
        All texts are stored in Unicode, whatever the character set of the message.
        {statement_passing_on(config)}
        #### 5.2.1 States
        {transition_block(MPPS_TRANSITIONS)}
        """


def statement_passing_on(config: Config) -> str:
    """MPPS Notification, and what is passed on."""
    hours = config.housekeeping.give_up_events_hours
    retries = ", ".join(map(str, RETRY_AFTER))
    events = ", ".join(f"{n} ({state or 'other change'})" for state, n in MPPS_EVENTS.items())
    return f"""
        #### 5.2.2 Passing on, and MPPS Notification (PS3.4 F.9)
        A device receives what its setting passed_on names: mpps, each accepted N-CREATE and N-SET,
          with the same SOP Instance UID, as SCU; availability, each accepted availability
          notification, as SCU; mpps_notification, MPPS Notification (PS3.4 F.9) as SCP by role
          selection. Nothing is forwarded to its own sender, and no N-SET that changes nothing.
        Messages of one receiver are sent in order, one at a time. If it cannot be reached, sending
          is retried after {retries} seconds (the last interval repeats) for {hours} hours, also
          after a restart; after a crash it may be sent twice, with the same Message ID. A message
          answered 0110, 0211 or 0213 is sent {MOST_REFUSALS} times, a message in whose middle the
          receiver ends the association {MOST_ABORTS} times; 0111 of an N-CREATE, and 0110 with
          Error ID A710, count as success; any other answer is recorded, and the next message
          follows. Messages whose context the receiver rejects are recorded as refused.
        Events of MPPS Notification (Table F.9.2-1):
          {events}.
          None has a data set.
        """


def statement_workitems(config: Config) -> str:
    """Workitems: attributes, states, what PS3.4 CC.4.2.1 wants to be documented."""
    ups = config.ups
    head = ("Attribute", "Tag", "N-CREATE", "N-SET", "Final", "N-GET", "Matching", "Return type")
    lines = [(*named(path, one), *one.cells.values()) for path, one in UPS_ATTRIBUTES.items()]
    absent = "refused with 0120" if ups.strict else "taken as empty and noted"
    return f"""
        ### 5.3 Unified procedure step (PS3.4 annex CC)
        {statement_table(head, *lines)}
        An absent type 2 attribute is {absent}; an empty Worklist Label becomes
          {ups.worklist_label}. Nothing else is changed at creation. Attributes beyond the table are
          stored. The Modification DateTime is ours, whatever was sent.
        The Transaction UID is the lock: only it is compared, not the sender; it is kept after the
          end, and never returned, matched or logged. A Transaction UID given at creation is refused
          with 0106; one in an N-SET of a SCHEDULED workitem with C310.
        N-SET of the state is refused with C303 (SCHEDULED) or 0105; of an attribute that may not be
          set with 0105 where it differs from what is stored.
        A canceled workitem is given the time and, if it has none, the reason 110513 (DCM): a
          cancellation never fails for lack of them.
        A request to cancel a SCHEDULED workitem is carried out at once: event 2, then IN PROGRESS,
          then CANCELED. If it is in progress, its subscribers are notified; C312 if there are none
          and no user of this system has claimed it, C313 if that user has declined.
        Users can create, claim, finish, assign and end workitems on the page; the same rules and
          events apply, and the Transaction UID of a user's workitem stays in this system.
        C-FIND without a state key finds all states. It fails with A700, A900, 0122 or C000 alone, as
          that of the worklist. Names match as in the worklist; codes by value
          and scheme, never by meaning. Times with an offset are compared as instants, without one
          as the clinic's. Priority (0000,0700) is ignored; neither fuzzy matching nor timezone
          adjustment is negotiated.
        N-GET and event reports are in the device's character set, else in ISO_IR 192.
        Final: R with a value in each final state, RC if known, P for COMPLETED, P2 the same though
          it may be empty, X for CANCELED, O never.
        """


def statement_workitem_states(config: Config) -> str:
    """The actions, events and transition tables of workitems and subscriptions."""
    actions = [(n, name, ", ".join(sorted(of))) for n, (name, of) in UPS_ACTIONS.items()]
    events = [(number, name) for name, number in EVENT_TYPES.items() if number]
    subscriptions = [(request, state, new, "yes" if report else "no")
                     for (request, state), (new, report) in SUBSCRIPTION_TRANSITIONS.items()]  # fmt: skip
    return f"""
        {statement_table(("Action type", "Action", "In the contexts of"), *actions)}

        {statement_table(("Event type", "Event"), *events)}
        Requests carry {UPS_PUSH} in any of the contexts. Subscriptions to all workitems are to
          {UPS_GLOBAL_SUBSCRIPTION}, filtered ones to {UPS_FILTERED_SUBSCRIPTION}, the keys beside
          Receiving AE and Deletion Lock.
        #### 5.3.1 States
        Of a SCHEDULED workitem any well-formed Transaction UID is the right one.
        {transition_block(UPS_TRANSITIONS)}
        #### 5.3.2 Subscriptions
        {statement_table(("Request", "State", "New state", "State report"), *subscriptions)}
        """


def statement_subscriptions(config: Config) -> str:
    """The rules of subscriptions and their events."""
    ups = config.ups
    told = ", ".join(ups.restart_receivers) or "nobody else"
    retries = ", ".join(map(str, RETRY_AFTER))
    creator = "is" if ups.auto_subscribe_creator else "is not"
    return f"""
        Deletion locks are {"granted" if ups.grant_locks else "not granted (B301)"}. Whoever creates
          a workitem {creator} subscribed to it. A Receiving AE must be registered with an address,
          or receive its events by WebSocket (else C308); it need not be the caller. Filtered global
          subscription is supported; the filter is applied to existing and to new workitems, not
          again when they change. Unsubscribe on either well-known UID ends all subscriptions of the
          AE, suspend the one of that UID.
        Events are written in the transaction that caused them, and sent after its commit and its
          response, as N-EVENT-REPORT on an association of ours that proposes the UPS Event SOP
          class with the SCP role. Where the role is not accepted nothing is sent, unless the
          device's switch events_without_role is on. Events of a receiver are sent in order, at
          least once, with a Message ID that a repeat keeps; any status in its answer counts as
          delivered.
        If a receiver cannot be reached, sending is retried after {retries} seconds (the last
          interval repeats); its events are discarded after
          {config.housekeeping.give_up_events_hours} hours of failure. An association from the
          receiver triggers a retry at once. Subscriptions and locks stay.
        UPS Assigned is sent once for each performer. SCP Status Change is sent once to each AE,
          with the UID of the global subscription: RESTARTED at every start, with COLD START where
          the store is new or was restored, else WARM
          START{"; GOING DOWN when stopped" if ups.tell_going_down else ""}. Beside the subscribers
          it is sent to {told}.
        """


def statement_retention(config: Config) -> str:
    """How long workitems stay, and what becomes of orphans."""
    keep = config.housekeeping
    days, silent = keep.release_locks_days, keep.cancel_silent_workitems_hours
    locks = f"after {days} days" if days else "never automatically"
    canceled = f"after {silent} hours" if silent else "never automatically"
    history = keep.keep_workitem_history_days
    kept = f"for {history} days" if history else "for good"
    return f"""
        #### 5.3.3 Retention and orphans
        A workitem that has ended stays {keep.keep_workitems_days} days at least, as long as any
          deletion lock on it, and as long as an event of it is pending; then it is deleted. Its UID
          is not accepted again, and its events stay as history {kept}.
        A deletion lock is listed as stuck {keep.stuck_lock_hours} hours after the end, and released
          {locks}. A workitem in progress is listed after {keep.stuck_workitem_hours} hours without
          news, and canceled {canceled}. A SCHEDULED one past its expiration is listed, and
          {"canceled" if keep.cancel_expired_workitems else "never canceled of itself"}. Events are
          listed after {keep.stuck_events_minutes} minutes. An administrator may release a lock, end
          a workitem and discard events, with a reason that is kept in the audit log.
        Until ten minutes after a start or a jump of the clock (six hours if it jumped by more than
          a week), nothing is deleted, released or canceled automatically.
        """


def statement_commitment(config: Config) -> str:
    """Storage commitment: what success rests on, times, limits."""
    keep = config.commitment
    retries = ", ".join(map(str, RETRY_AFTER))
    return f"""
        ### 5.7 Storage commitment (PS3.4 J; PS3.18 13)
        This system keeps no images. An instance is committed when it was seen, under the SOP class
          that is asked for, in the archive; evidence in this order: {", ".join(keep.evidence)}. The
          archive is {keep.archive or "the one device whose role is archive"}.
        archive: C-FIND (Study Root) at IMAGE level within study and series, known from the request,
          a performed procedure step or an availability notification; else by SOP Instance UIDs
          alone, where the device of the archive has relational_queries; else it could not be
          checked, which is failure 0110. commitment: the request for the remaining instances is
          forwarded to the archive's own storage commitment, as SCU, under a Transaction UID of
          ours; its report is taken on an association that the archive opens, as SCP by role
          selection, from the archive's AE titles alone (else 0115), and returned under the original
          UID, with its failure reasons 0112, 0119, 0122 and 0213, any other as 0110. Without a
          report in {keep.answer_minutes} minutes it is asked again. availability: a notification by
          the archive itself that the instance is ONLINE or NEARLINE there.
        An instance that is not there is looked for again for {keep.missing_minutes} minutes, then
          fails with 0112. An archive that cannot be reached is asked again after {retries} seconds
          (the last interval repeats) for {keep.give_up_hours} hours; then the remaining instances
          fail with 0110. Success is never reported without evidence.
        The result is sent on an association of this system, with the AE title that was called, as
          SCP by role selection (or without it, where the device has events_without_role); first on
          the requester's own, where its device has report_on_same_association and that is still
          open. 0110, 0211 and 0213 count as not delivered, any other status as delivered. If the
          requester cannot be reached, sending is retried in the same way for {keep.report_hours}
          hours, also after a restart; after a crash it may be sent twice.
        A requester must be registered with an address (else 0124). An identical request while the
          first is pending is the same request; a different one under a known Transaction UID is
          answered with event 2, all 0131 (over HTTP 409). More than {keep.maximum_instances}
          instances are refused with 0213, an instance named twice with 0115.
        Results are kept {keep.keep_days} days, their Transaction UIDs for good (404 for an unknown,
          410 for a dropped one). Duration, retrieval and capacity of the storage are the archive's.
        Retrieve AE Title is given at the top level, where all that is committed was seen in one
          archive. Storage media are ignored.
        {statement_table(("Failure Reason", "Meaning"), *FAILURE_REASONS.items())}
        """


def statement_availability(config: Config) -> str:
    """Instance availability: what is made of it."""
    keep = config.commitment
    lines = [
        (named(path, one)[0], one.cells["create"]) for path, one in AVAILABILITY_ATTRIBUTES.items()
    ]
    return f"""
        ### 5.8 Instance availability notification (PS3.4 R)
        Of an instance and a Retrieve AE Title, the newest notification counts. Attributes beyond
          the table are stored. A second notification under a UID is refused with 0111. Both are
          kept {keep.keep_days} days. Received notifications are forwarded as in 5.2.2; for
          instances found by C-FIND this system creates one for each study.
        Every {keep.look_minutes} minutes (0: never) the archive is asked by C-FIND for the
          instances that performed steps of the last two days name and that are not known to be
          there (those that ended more than two hours ago, each hour), and by Study Instance UID for
          exams of today and yesterday of machines that do not report.
        A machine reports performed steps if its device says so, or where that says auto, if it ever
          has. An exam of another one has begun when an instance of its study is notified or found;
          it has ended when none more has come for {keep.quiet_minutes} minutes (as the archive said
          when it was asked thereafter), if its study has no other step, when the machine has asked
          for storage commitment of instances that were found in its study, or when a person says
          so. The source is recorded.
        The Input Readiness State of a SCHEDULED workitem becomes READY, and its subscribers are
          notified, when each instance of its Input Information Sequence is known to be ONLINE or
          NEARLINE (at one of the AE titles that it names, if any). For an item that lists no
          instances, and for a list that is INCOMPLETE, all performed steps of the study must have
          ended and all their instances be known.
        {statement_table(("Attribute", "N-CREATE"), *lines)}
        """


DIMSE_PARTS = (
    statement_worklist, statement_mpps, statement_workitems, statement_workitem_states,
    statement_subscriptions, statement_retention,
)  # fmt: skip
IMAGE_PARTS = (statement_commitment, statement_availability)
