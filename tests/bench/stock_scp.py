"""The obvious MPPS and UPS server: pynetdicom at its stock settings, rows in SQLite, synchronous FULL.

The peer for these figures, since wlmscpfs takes neither.

    python tests/bench/stock_scp.py PORT DATABASE
"""

import sqlite3
import sys
import threading

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    ModalityPerformedProcedureStep,
    UnifiedProcedureStepPull,
    UnifiedProcedureStepPush,
    Verification,
)

SUCCESS, PROCESSING_FAILURE, DUPLICATE, NO_SUCH_INSTANCE = 0x0000, 0x0110, 0x0111, 0x0112
TRANSACTION_UID_INCORRECT, NO_SUCH_UPS = 0xC301, 0xC307


class Store:
    """Steps, performed or to be done, as rows of DICOM JSON; each change is a transaction."""

    def __init__(self, path):
        self.lock = threading.Lock()
        self.database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self.database.execute("PRAGMA journal_mode = wal")
        self.database.execute("PRAGMA synchronous = full")
        self.database.execute("CREATE TABLE step (uid TEXT PRIMARY KEY, status TEXT, body TEXT)")

    def create(self, event):
        """Handle N-CREATE."""
        dataset = event.attribute_list
        keyword = "PerformedProcedureStepStatus"
        status = dataset[keyword if keyword in dataset else "ProcedureStepState"].value
        row = (event.request.AffectedSOPInstanceUID, status, dataset.to_json())
        try:
            with self.lock:
                self.database.execute("INSERT INTO step VALUES (?, ?, ?)", row)
        except sqlite3.IntegrityError:
            return DUPLICATE, None
        return SUCCESS, None

    def set(self, event):
        """Handle N-SET."""
        uid, changes = event.request.RequestedSOPInstanceUID, event.modification_list
        with self.lock:
            query = self.database.execute("SELECT status, body FROM step WHERE uid = ?", (uid,))
            row = query.fetchone()
            if row is None:
                return NO_SUCH_INSTANCE, None
            if row[0] != "IN PROGRESS":
                return PROCESSING_FAILURE, None
            dataset = Dataset.from_json(row[1])
            dataset.update(changes)
            self.database.execute(
                "UPDATE step SET status = ?, body = ? WHERE uid = ?",
                (dataset.PerformedProcedureStepStatus, dataset.to_json(), uid),
            )
        return SUCCESS, None

    def claim(self, event):
        """Handle N-ACTION that claims a workitem."""
        uid, claim = event.request.RequestedSOPInstanceUID, event.action_information
        with self.lock:
            query = self.database.execute("SELECT status, body FROM step WHERE uid = ?", (uid,))
            row = query.fetchone()
            if row is None:
                return NO_SUCH_UPS, None
            if row[0] != "SCHEDULED":
                return TRANSACTION_UID_INCORRECT, None
            dataset = Dataset.from_json(row[1])
            dataset.update(claim)
            self.database.execute(
                "UPDATE step SET status = ?, body = ? WHERE uid = ?",
                (dataset.ProcedureStepState, dataset.to_json(), uid),
            )
        return SUCCESS, None


def main(port, path):
    """Serve until killed."""
    store, server = Store(path), AE("BENCH")
    server.add_supported_context(Verification)
    server.add_supported_context(ModalityPerformedProcedureStep)
    server.add_supported_context(UnifiedProcedureStepPush)
    server.add_supported_context(UnifiedProcedureStepPull)
    handlers = [
        (evt.EVT_N_CREATE, store.create),
        (evt.EVT_N_SET, store.set),
        (evt.EVT_N_ACTION, store.claim),
    ]
    server.start_server(("127.0.0.1", port), evt_handlers=handlers)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
