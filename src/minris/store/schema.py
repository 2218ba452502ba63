"""The schema of a new database: the tables of the models, indexes, triggers."""

import peewee

from minris.store.models import MODELS, Stored

# Column types of peewee's fields in SQLite.
_TYPES = {"AUTO": "INTEGER", "INT": "INTEGER", "TEXT": "TEXT", "BLOB": "BLOB"}

INDEXES = """
    CREATE INDEX patient_name_key ON patient (name_key);
    CREATE INDEX patient_patient_id_issuer_of_patient_id
        ON patient (patient_id, issuer_of_patient_id);
    CREATE INDEX patient_initials ON patient (initials);
    CREATE INDEX requested_procedure_patient_id ON requested_procedure (patient_id);
    CREATE UNIQUE INDEX requested_procedure_study_instance_uid
        ON requested_procedure (study_instance_uid);
    CREATE INDEX requested_procedure_requested_procedure_id
        ON requested_procedure (requested_procedure_id);
    CREATE INDEX requested_procedure_accession_number ON requested_procedure (accession_number);
    CREATE UNIQUE INDEX scheduled_procedure_step_procedure_step_id
        ON scheduled_procedure_step (procedure_id, scheduled_procedure_step_id);
    CREATE INDEX scheduled_procedure_step_step_id
        ON scheduled_procedure_step (scheduled_procedure_step_id);
    CREATE INDEX scheduled_procedure_step_start
        ON scheduled_procedure_step (start_date, start_time);
    CREATE INDEX scheduled_procedure_step_start_date_modality
        ON scheduled_procedure_step (start_date, modality);
    CREATE INDEX scheduled_procedure_step_accession_number
        ON scheduled_procedure_step (accession_number);
    CREATE INDEX scheduled_procedure_step_patient_id ON scheduled_procedure_step (patient_id);
    CREATE INDEX scheduled_procedure_step_study ON scheduled_procedure_step (study_instance_uid);
    CREATE INDEX scheduled_procedure_step_status ON scheduled_procedure_step (status, start_date);
    CREATE INDEX scheduled_station_step_id ON scheduled_station (step_id);
    CREATE UNIQUE INDEX performed_procedure_step_sop_instance_uid
        ON performed_procedure_step (sop_instance_uid);
    CREATE INDEX performed_procedure_step_created_at ON performed_procedure_step (created_at);
    CREATE INDEX performed_procedure_step_station
        ON performed_procedure_step (performed_station_ae_title);
    CREATE INDEX performed_procedure_step_updated_at ON performed_procedure_step (updated_at);
    CREATE INDEX performed_scheduled_step_scheduled_id ON performed_scheduled_step (scheduled_id);
    CREATE INDEX workitem_ended_at ON workitem (ended_at) WHERE ended_at <> '';
    CREATE UNIQUE INDEX workitem_sop_instance_uid ON workitem (sop_instance_uid);
    CREATE INDEX workitem_state ON workitem (state, worklist_label, start_at);
    CREATE INDEX workitem_start_at ON workitem (start_at);
    CREATE INDEX workitem_patient_id ON workitem (patient_id);
    CREATE INDEX workitem_accession_number ON workitem (accession_number);
    CREATE INDEX workitem_silent ON workitem (updated_at) WHERE state = 'IN PROGRESS';
    CREATE INDEX workitem_not_ready ON workitem (updated_at)
        WHERE state = 'SCHEDULED' AND readiness <> 'READY';
    CREATE INDEX subscription_ae_title ON subscription (ae_title);
    CREATE INDEX workitem_event_sop_instance_uid ON workitem_event (sop_instance_uid);
    CREATE INDEX commitment_transaction_uid ON commitment (transaction_uid);
    CREATE INDEX commitment_due ON commitment (try_at) WHERE state = 'asked';
    CREATE INDEX commitment_judged ON commitment (requester) WHERE state = 'judged';
    CREATE INDEX commitment_created_at ON commitment (created_at);
    CREATE INDEX commitment_instance_commitment_id ON commitment_instance (commitment_id);
    CREATE INDEX commitment_instance_open ON commitment_instance (sop_instance_uid)
        WHERE verdict = '';
    CREATE INDEX outbox_due ON outbox (lane, receiver, id) WHERE sent_at = '' AND given_up_at = '';
    CREATE INDEX outbox_receiver ON outbox (receiver, id);
    CREATE INDEX outbox_event_id ON outbox (event_id);
    CREATE INDEX outbox_commitment_id ON outbox (commitment_id) WHERE commitment_id IS NOT NULL;
    CREATE INDEX outbox_sop_instance_uid ON outbox (sop_instance_uid)
        WHERE sop_instance_uid IS NOT NULL;
    CREATE INDEX outbox_passed_on ON outbox (id) WHERE lane = 'passed on';
    CREATE INDEX availability_study_instance_uid ON availability (study_instance_uid);
    CREATE INDEX undo_note_about ON undo_note (about);
    CREATE UNIQUE INDEX query_trace_once ON query_trace (hour, ae_title, address, keys);
    CREATE INDEX login_failure_who ON login_failure (who, at);
    CREATE INDEX audit_at ON audit (at);
"""

TRIGGERS = """
    CREATE TRIGGER audit_not_changed BEFORE UPDATE ON audit
        BEGIN SELECT RAISE(ABORT, 'the audit log is never changed'); END;
    CREATE TRIGGER audit_not_erased BEFORE DELETE ON audit
        WHEN NOT EXISTS (SELECT 1 FROM mark WHERE name = 'audit purge')
        BEGIN SELECT RAISE(ABORT, 'the audit log is never erased'); END;
"""


def _column(field: peewee.Field) -> str:
    """The SQL of a column; the default of the model becomes the default of the column."""
    kind = _TYPES[getattr(field, "rel_field", field).field_type]
    words = [field.column_name, kind, *([] if field.null else ["NOT NULL"])]
    if field.primary_key:
        words.append("PRIMARY KEY")
        words += ["AUTOINCREMENT"] if hasattr(field.model._meta, "autoincrement") else []
    if field.unique:
        words.append("UNIQUE")
    if isinstance(field, peewee.ForeignKeyField):
        words.append(f"REFERENCES {field.rel_model._meta.table_name} (id)")
        words += [f"ON DELETE {field.on_delete}"] if field.on_delete else []
    if field.default is not None:
        words.append(f"DEFAULT {field.default!r}".replace("b''", "x''"))
    return " ".join(words)


def _table(model: type[Stored]) -> str:
    meta = model._meta
    parts = [_column(field) for field in meta.sorted_fields]
    if meta.composite_key:
        names = ", ".join(field.column_name for field in meta.get_primary_keys())
        parts.append(f"PRIMARY KEY ({names})")
    ending = " WITHOUT ROWID" if meta.without_rowid else ""
    return f"CREATE TABLE {meta.table_name} ({', '.join(parts)}){ending};"


def new_schema() -> str:
    """The SQL of a new database."""
    return "".join((*map(_table, MODELS), INDEXES, TRIGGERS))
