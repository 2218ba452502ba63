"""The schema of a new database: the tables of the models, indexes, triggers."""

import peewee

from minris.standard.tables import body_rows
from minris.store.models import MODELS, Stored

# Column types of peewee's fields in SQLite.
_TYPES = {"AUTO": "INTEGER", "INT": "INTEGER", "TEXT": "TEXT", "BLOB": "BLOB"}

INDEXES = body_rows("""
    unique | index                                        | table                    | columns                                   | where
           | patient_name_key                             | patient                  | name_key                                  |
           | patient_patient_id_issuer_of_patient_id      | patient                  | patient_id, issuer_of_patient_id          |
           | patient_initials                             | patient                  | initials                                  |
           | former_identity_patient_id                   | former_identity          | patient_id                                |
           | former_identity_former_id                    | former_identity          | former_id                                 |
           | requested_procedure_patient_id               | requested_procedure      | patient_id                                |
    UNIQUE | requested_procedure_study_instance_uid       | requested_procedure      | study_instance_uid                        |
           | requested_procedure_requested_procedure_id   | requested_procedure      | requested_procedure_id                    |
           | requested_procedure_accession_number         | requested_procedure      | accession_number                          |
    UNIQUE | scheduled_procedure_step_procedure_step_id   | scheduled_procedure_step | procedure_id, scheduled_procedure_step_id |
           | scheduled_procedure_step_step_id             | scheduled_procedure_step | scheduled_procedure_step_id               |
           | scheduled_procedure_step_start               | scheduled_procedure_step | start_date, start_time                    |
           | scheduled_procedure_step_start_date_modality | scheduled_procedure_step | start_date, modality                      |
           | scheduled_procedure_step_accession_number    | scheduled_procedure_step | accession_number                          |
           | scheduled_procedure_step_patient_id          | scheduled_procedure_step | patient_id                                |
           | scheduled_procedure_step_study               | scheduled_procedure_step | study_instance_uid                        |
           | scheduled_procedure_step_status              | scheduled_procedure_step | status, start_date                        |
           | patient_view_patient_id                      | patient_view             | patient_id, who                           |
    UNIQUE | waiting_number_number                        | waiting_number           | day, number                               |
           | waiting_number_patient_id                    | waiting_number           | patient_id                                |
           | scheduled_station_step_id                    | scheduled_station        | step_id                                   |
    UNIQUE | performed_procedure_step_sop_instance_uid    | performed_procedure_step | sop_instance_uid                          |
           | performed_procedure_step_created_at          | performed_procedure_step | created_at                                |
           | performed_procedure_step_station             | performed_procedure_step | performed_station_ae_title                |
           | performed_procedure_step_patient_id          | performed_procedure_step | patient_id                                |
           | performed_procedure_step_updated_at          | performed_procedure_step | updated_at                                |
           | performed_scheduled_step_scheduled_id        | performed_scheduled_step | scheduled_id                              |
           | performed_scheduled_step_differs             | performed_scheduled_step | performed_id                              | patient = 'differs'
           | performed_scheduled_step_told                | performed_scheduled_step | performed_id                              | told <> x''
           | imported_patient_patient_id                  | imported_patient         | patient_id                                |
           | workitem_ended_at                            | workitem                 | ended_at                                  | ended_at <> ''
    UNIQUE | workitem_sop_instance_uid                    | workitem                 | sop_instance_uid                          |
           | workitem_state                               | workitem                 | state, worklist_label, start_at           |
           | workitem_start_at                            | workitem                 | start_at                                  |
           | workitem_patient_id                          | workitem                 | patient_id                                |
           | workitem_accession_number                    | workitem                 | accession_number                          |
           | workitem_silent                              | workitem                 | updated_at                                | state = 'IN PROGRESS'
           | workitem_not_ready                           | workitem                 | updated_at                                | state = 'SCHEDULED' AND readiness <> 'READY'
           | subscription_ae_title                        | subscription             | ae_title                                  |
           | workitem_event_sop_instance_uid              | workitem_event           | sop_instance_uid                          |
           | commitment_transaction_uid                   | commitment               | transaction_uid                           |
           | commitment_due                               | commitment               | try_at                                    | state = 'asked'
           | commitment_judged                            | commitment               | requester                                 | state = 'judged'
           | commitment_created_at                        | commitment               | created_at                                |
           | commitment_instance_commitment_id            | commitment_instance      | commitment_id                             |
           | commitment_instance_open                     | commitment_instance      | sop_instance_uid                          | verdict = ''
           | outbox_due                                   | outbox                   | lane, receiver, id                        | sent_at = '' AND given_up_at = ''
           | outbox_receiver                              | outbox                   | receiver, id                              |
           | outbox_event_id                              | outbox                   | event_id                                  |
           | outbox_commitment_id                         | outbox                   | commitment_id                             | commitment_id IS NOT NULL
           | outbox_sop_instance_uid                      | outbox                   | sop_instance_uid                          | sop_instance_uid IS NOT NULL
           | outbox_passed_on                             | outbox                   | id                                        | lane = 'passed on'
           | availability_study_instance_uid              | availability             | study_instance_uid                        |
           | undo_note_about                              | undo_note                | about                                     |
           | referrer_used_at                             | referrer                 | used_at                                   |
           | value_change_about                           | value_change             | about                                     |
    UNIQUE | query_trace_once                             | query_trace              | hour, ae_title, address, keys             |
           | login_failure_who                            | login_failure            | who, at                                   |
           | audit_at                                     | audit                    | at                                        |
           | audit_about                                  | audit                    | about                                     |
           | imported_file_digest                         | imported_file            | digest                                    |
           | imported_file_state                          | imported_file            | state                                     |
           | blocked_time_last                            | blocked_time             | last, ae_title                            |
    """)

# What an import changes of patients, while a mark with its number is set.
KEEP_IMPORTED = """
    CREATE TRIGGER imported_patient_before BEFORE UPDATE OF data ON patient
        WHEN EXISTS (SELECT 1 FROM mark WHERE name = 'importing')
        BEGIN INSERT OR IGNORE INTO imported_patient (import_id, patient_id, before)
            SELECT CAST(value AS INTEGER), OLD.id, OLD.data FROM mark WHERE name = 'importing'; END;
    CREATE TRIGGER imported_patient_after AFTER UPDATE OF data ON patient
        WHEN EXISTS (SELECT 1 FROM mark WHERE name = 'importing')
        BEGIN UPDATE imported_patient
            SET after = CASE WHEN after IN (x'', OLD.data) THEN NEW.data ELSE x'00' END
            WHERE patient_id = NEW.id AND import_id =
            (SELECT CAST(value AS INTEGER) FROM mark WHERE name = 'importing'); END;
"""
TRIGGERS = (
    KEEP_IMPORTED
    + """
    CREATE TRIGGER audit_not_changed BEFORE UPDATE ON audit
        BEGIN SELECT RAISE(ABORT, 'the audit log is never changed'); END;
    CREATE TRIGGER audit_not_erased BEFORE DELETE ON audit
        WHEN NOT EXISTS (SELECT 1 FROM mark WHERE name = 'audit purge')
        BEGIN SELECT RAISE(ABORT, 'the audit log is never erased'); END;
"""
)


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


def _index(unique: str, name: str, table: str, columns: str, where: str) -> str:
    condition = f" WHERE {where}" if where else ""
    return f"CREATE {unique} INDEX {name} ON {table} ({columns}){condition};"


def new_schema() -> str:
    """The SQL of a new database."""
    indexes = (_index(*row) for row in INDEXES)
    return "".join((*map(_table, MODELS), *indexes, TRIGGERS))
