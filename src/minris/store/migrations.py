"""How the schema came to be: each step once, in order."""

# Append-only: what has been released is never changed, a change is a new row.
MIGRATIONS: tuple[tuple[int, str, str], ...] = (
    (
        1,
        "patients, procedures, steps, users, audit",
        """
        CREATE TABLE patient (
            id INTEGER NOT NULL PRIMARY KEY, patient_id TEXT NOT NULL,
            issuer_of_patient_id TEXT NOT NULL, patient_name TEXT NOT NULL, name_key TEXT NOT NULL,
            patient_birth_date TEXT NOT NULL, data BLOB NOT NULL, created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL);
        CREATE INDEX patient_name_key ON patient (name_key);
        CREATE INDEX patient_patient_id_issuer_of_patient_id
            ON patient (patient_id, issuer_of_patient_id);
        CREATE TABLE requested_procedure (
            id INTEGER NOT NULL PRIMARY KEY,
            patient_id INTEGER NOT NULL REFERENCES patient (id), study_instance_uid TEXT NOT NULL,
            requested_procedure_id TEXT NOT NULL, accession_number TEXT NOT NULL,
            data BLOB NOT NULL, created_at TEXT NOT NULL);
        CREATE INDEX requested_procedure_patient_id ON requested_procedure (patient_id);
        CREATE UNIQUE INDEX requested_procedure_study_instance_uid
            ON requested_procedure (study_instance_uid);
        CREATE INDEX requested_procedure_requested_procedure_id
            ON requested_procedure (requested_procedure_id);
        CREATE INDEX requested_procedure_accession_number ON requested_procedure (accession_number);
        CREATE TABLE scheduled_procedure_step (
            id INTEGER NOT NULL PRIMARY KEY,
            procedure_id INTEGER NOT NULL REFERENCES requested_procedure (id),
            scheduled_procedure_step_id TEXT NOT NULL, study_instance_uid TEXT NOT NULL,
            requested_procedure_id TEXT NOT NULL, accession_number TEXT NOT NULL,
            patient_id TEXT NOT NULL, name_key TEXT NOT NULL, modality TEXT NOT NULL,
            start_date TEXT NOT NULL, start_time TEXT NOT NULL, status TEXT NOT NULL,
            data BLOB NOT NULL, version INTEGER NOT NULL, created_at TEXT NOT NULL,
            arrived_at TEXT NOT NULL, started_at TEXT NOT NULL, ended_at TEXT NOT NULL,
            remark TEXT NOT NULL);
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
        CREATE INDEX scheduled_procedure_step_study
            ON scheduled_procedure_step (study_instance_uid);
        CREATE TABLE scheduled_station (
            ae_title TEXT NOT NULL, start_date TEXT NOT NULL,
            step_id INTEGER NOT NULL REFERENCES scheduled_procedure_step (id),
            PRIMARY KEY (ae_title, start_date, step_id)) WITHOUT ROWID;
        CREATE INDEX scheduled_station_step_id ON scheduled_station (step_id);
        CREATE TABLE performed_procedure_step (
            id INTEGER NOT NULL PRIMARY KEY, sop_instance_uid TEXT NOT NULL, status TEXT NOT NULL,
            performed_station_ae_title TEXT NOT NULL, data BLOB NOT NULL, created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL, remark TEXT NOT NULL);
        CREATE UNIQUE INDEX performed_procedure_step_sop_instance_uid
            ON performed_procedure_step (sop_instance_uid);
        CREATE INDEX performed_procedure_step_created_at ON performed_procedure_step (created_at);
        CREATE TABLE performed_scheduled_step (
            performed_id INTEGER NOT NULL REFERENCES performed_procedure_step (id),
            scheduled_id INTEGER NOT NULL REFERENCES scheduled_procedure_step (id),
            found_by TEXT NOT NULL, status_before TEXT NOT NULL,
            PRIMARY KEY (performed_id, scheduled_id)) WITHOUT ROWID;
        CREATE INDEX performed_scheduled_step_scheduled_id
            ON performed_scheduled_step (scheduled_id);
        CREATE TABLE user (
            id INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL UNIQUE, role TEXT NOT NULL,
            password TEXT NOT NULL, created_at TEXT NOT NULL);
        CREATE TABLE session (
            digest TEXT NOT NULL PRIMARY KEY,
            user_id INTEGER NOT NULL REFERENCES user (id) ON DELETE CASCADE,
            csrf TEXT NOT NULL, created_at TEXT NOT NULL, expires_at TEXT NOT NULL);
        CREATE TABLE token (
            id INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL UNIQUE, role TEXT NOT NULL,
            digest TEXT NOT NULL UNIQUE, created_at TEXT NOT NULL);
        CREATE TABLE login_failure (
            id INTEGER NOT NULL PRIMARY KEY, who TEXT NOT NULL, at TEXT NOT NULL);
        CREATE INDEX login_failure_who ON login_failure (who, at);
        CREATE TABLE counter (name TEXT NOT NULL PRIMARY KEY, last INTEGER NOT NULL);
        CREATE TABLE audit (
            id INTEGER NOT NULL PRIMARY KEY, at TEXT NOT NULL, who TEXT NOT NULL,
            what TEXT NOT NULL, about TEXT NOT NULL, detail TEXT NOT NULL);
        CREATE INDEX audit_at ON audit (at);
        """,
    ),
    (
        2,
        "devices, procedure catalogue, query trace, raw bytes of recovered texts",
        """
        CREATE TABLE device_record (
            id INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL UNIQUE, settings TEXT NOT NULL,
            created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
        CREATE TABLE procedure (
            id INTEGER NOT NULL PRIMARY KEY, code TEXT NOT NULL UNIQUE, scheme TEXT NOT NULL,
            meaning TEXT NOT NULL, modality TEXT NOT NULL, ae_title TEXT NOT NULL,
            minutes INTEGER NOT NULL, protocol_code TEXT NOT NULL, protocol_meaning TEXT NOT NULL,
            retired INTEGER NOT NULL);
        CREATE TABLE query_trace (
            id INTEGER NOT NULL PRIMARY KEY, hour TEXT NOT NULL, ae_title TEXT NOT NULL,
            address TEXT NOT NULL, keys BLOB NOT NULL, raw BLOB NOT NULL, count INTEGER NOT NULL,
            answers INTEGER NOT NULL, status INTEGER NOT NULL, last_at TEXT NOT NULL);
        CREATE UNIQUE INDEX query_trace_once ON query_trace (hour, ae_title, address, keys);
        ALTER TABLE performed_procedure_step ADD COLUMN raw BLOB;
        ALTER TABLE performed_procedure_step ADD COLUMN settled TEXT NOT NULL DEFAULT '';
        CREATE INDEX scheduled_procedure_step_status
            ON scheduled_procedure_step (status, start_date);
        """,
    ),
    (
        3,
        "workitems, subscriptions, events and their delivery",
        """
        CREATE TABLE workitem (
            id INTEGER NOT NULL PRIMARY KEY, sop_instance_uid TEXT NOT NULL, state TEXT NOT NULL,
            transaction_uid TEXT NOT NULL, performer TEXT NOT NULL, by_person INTEGER NOT NULL,
            declined TEXT NOT NULL, worklist_label TEXT NOT NULL,
            priority TEXT NOT NULL, readiness TEXT NOT NULL, start_at TEXT NOT NULL,
            expires_at TEXT NOT NULL, patient_id TEXT NOT NULL,
            accession_number TEXT NOT NULL, name_key TEXT NOT NULL, label TEXT NOT NULL, data BLOB NOT NULL, version INTEGER NOT NULL,
            created_at TEXT NOT NULL, updated_at TEXT NOT NULL, claimed_at TEXT NOT NULL,
            ended_at TEXT NOT NULL);
        CREATE INDEX workitem_ended_at ON workitem (ended_at) WHERE ended_at <> '';
        CREATE UNIQUE INDEX workitem_sop_instance_uid ON workitem (sop_instance_uid);
        CREATE INDEX workitem_state ON workitem (state, worklist_label, start_at);
        CREATE INDEX workitem_start_at ON workitem (start_at);
        CREATE INDEX workitem_patient_id ON workitem (patient_id);
        CREATE INDEX workitem_accession_number ON workitem (accession_number);
        CREATE INDEX workitem_silent ON workitem (updated_at) WHERE state = 'IN PROGRESS';
        CREATE TABLE purged_workitem (
            sop_instance_uid TEXT NOT NULL PRIMARY KEY, purged_at TEXT NOT NULL);
        CREATE TABLE subscription (
            workitem_id INTEGER NOT NULL REFERENCES workitem (id), ae_title TEXT NOT NULL,
            deletion_lock INTEGER NOT NULL, created_at TEXT NOT NULL,
            PRIMARY KEY (workitem_id, ae_title)) WITHOUT ROWID;
        CREATE INDEX subscription_ae_title ON subscription (ae_title);
        CREATE TABLE global_subscription (
            ae_title TEXT NOT NULL, uid TEXT NOT NULL, deletion_lock INTEGER NOT NULL,
            keys BLOB NOT NULL, created_at TEXT NOT NULL, PRIMARY KEY (ae_title, uid));
        CREATE TABLE workitem_event (
            id INTEGER NOT NULL PRIMARY KEY, sop_instance_uid TEXT NOT NULL,
            event_type INTEGER NOT NULL, data BLOB NOT NULL, created_at TEXT NOT NULL,
            who TEXT NOT NULL, initial INTEGER NOT NULL DEFAULT 0);
        CREATE INDEX workitem_event_sop_instance_uid ON workitem_event (sop_instance_uid);
        CREATE TABLE outbox_event (
            id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
            event_id INTEGER NOT NULL REFERENCES workitem_event (id), receiver TEXT NOT NULL,
            created_at TEXT NOT NULL, sent_at TEXT NOT NULL DEFAULT '',
            given_up_at TEXT NOT NULL DEFAULT '', problem TEXT NOT NULL DEFAULT '');
        CREATE INDEX outbox_event_receiver ON outbox_event (receiver, id);
        CREATE INDEX outbox_event_due ON outbox_event (receiver, id)
            WHERE sent_at = '' AND given_up_at = '';
        CREATE INDEX outbox_event_event_id ON outbox_event (event_id);
        CREATE TABLE receiver (
            ae_title TEXT NOT NULL PRIMARY KEY, failures INTEGER NOT NULL DEFAULT 0,
            failing_s INTEGER NOT NULL DEFAULT 0,
            try_at TEXT NOT NULL DEFAULT '', problem TEXT NOT NULL DEFAULT '',
            heard_at TEXT NOT NULL DEFAULT '');
        CREATE TABLE mark (name TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL);
        """,
    ),
    (
        4,
        "events by WebSocket, tokens of AE titles",
        """
        CREATE TABLE event_channel (
            ae_title TEXT NOT NULL, channel TEXT NOT NULL,
            PRIMARY KEY (ae_title, channel)) WITHOUT ROWID;
        INSERT INTO event_channel SELECT ae_title, 'dimse' FROM subscription
            UNION SELECT ae_title, 'dimse' FROM global_subscription;
        ALTER TABLE outbox_event ADD COLUMN channel TEXT NOT NULL DEFAULT 'dimse';
        DROP INDEX outbox_event_due;
        CREATE INDEX outbox_event_due ON outbox_event (channel, receiver, id)
            WHERE sent_at = '' AND given_up_at = '';
        ALTER TABLE token ADD COLUMN ae_titles TEXT NOT NULL DEFAULT '';
        """,
    ),
    (
        5,
        "storage commitment, instance availability",
        """
        CREATE TABLE commitment (
            id INTEGER NOT NULL PRIMARY KEY, transaction_uid TEXT NOT NULL,
            requester TEXT NOT NULL, called TEXT NOT NULL, door TEXT NOT NULL,
            by_study INTEGER NOT NULL, repeats INTEGER NOT NULL, state TEXT NOT NULL,
            data BLOB NOT NULL, problem TEXT NOT NULL DEFAULT '',
            failures INTEGER NOT NULL DEFAULT 0, try_at TEXT NOT NULL DEFAULT '',
            created_at TEXT NOT NULL, judged_at TEXT NOT NULL DEFAULT '',
            told_at TEXT NOT NULL DEFAULT '');
        CREATE INDEX commitment_transaction_uid ON commitment (transaction_uid);
        CREATE INDEX commitment_due ON commitment (try_at) WHERE state IN ('asked', 'judged');
        CREATE INDEX commitment_created_at ON commitment (created_at);
        CREATE TABLE commitment_instance (
            id INTEGER NOT NULL PRIMARY KEY,
            commitment_id INTEGER NOT NULL REFERENCES commitment (id) ON DELETE CASCADE,
            sop_class_uid TEXT NOT NULL, sop_instance_uid TEXT NOT NULL,
            study_instance_uid TEXT NOT NULL, series_instance_uid TEXT NOT NULL,
            verdict TEXT NOT NULL DEFAULT '', evidence TEXT NOT NULL DEFAULT '');
        CREATE INDEX commitment_instance_commitment_id ON commitment_instance (commitment_id);
        CREATE TABLE availability (
            sop_instance_uid TEXT NOT NULL, retrieve_ae_title TEXT NOT NULL,
            sop_class_uid TEXT NOT NULL, study_instance_uid TEXT NOT NULL,
            series_instance_uid TEXT NOT NULL, availability TEXT NOT NULL, who TEXT NOT NULL,
            at TEXT NOT NULL, PRIMARY KEY (sop_instance_uid, retrieve_ae_title)) WITHOUT ROWID;
        CREATE INDEX availability_study_instance_uid ON availability (study_instance_uid);
        CREATE TABLE availability_notice (
            id INTEGER NOT NULL PRIMARY KEY, sop_instance_uid TEXT NOT NULL UNIQUE,
            who TEXT NOT NULL, data BLOB NOT NULL, created_at TEXT NOT NULL);
        """,
    ),
    (
        6,
        "what is passed on to other systems",
        """
        CREATE TABLE passed_on (
            id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, receiver TEXT NOT NULL,
            sop_class_uid TEXT NOT NULL, operation TEXT NOT NULL, sop_instance_uid TEXT NOT NULL,
            event_type INTEGER NOT NULL, data BLOB NOT NULL, created_at TEXT NOT NULL,
            sent_at TEXT NOT NULL DEFAULT '', given_up_at TEXT NOT NULL DEFAULT '',
            answer TEXT NOT NULL DEFAULT '', refused INTEGER NOT NULL DEFAULT 0,
            problem TEXT NOT NULL DEFAULT '');
        CREATE INDEX passed_on_due ON passed_on (receiver, id)
            WHERE sent_at = '' AND given_up_at = '';
        CREATE INDEX passed_on_sop_instance_uid ON passed_on (sop_instance_uid);
        CREATE TABLE destination (
            ae_title TEXT NOT NULL PRIMARY KEY, failures INTEGER NOT NULL DEFAULT 0,
            failing_s INTEGER NOT NULL DEFAULT 0,
            try_at TEXT NOT NULL DEFAULT '', problem TEXT NOT NULL DEFAULT '',
            heard_at TEXT NOT NULL DEFAULT '');
        """,
    ),
    (
        7,
        "requests for commitment that are passed on to the archive",
        """
        CREATE TABLE commitment_relay (
            id INTEGER NOT NULL PRIMARY KEY, transaction_uid TEXT NOT NULL UNIQUE,
            commitment_id INTEGER NOT NULL REFERENCES commitment (id) ON DELETE CASCADE,
            archive TEXT NOT NULL, asked_at TEXT NOT NULL,
            answered_at TEXT NOT NULL DEFAULT '');
        CREATE INDEX commitment_relay_commitment_id ON commitment_relay (commitment_id);
        CREATE INDEX commitment_instance_open ON commitment_instance (sop_instance_uid)
            WHERE verdict = '';
        """,
    ),
    (
        8,
        "exams whose machines do not report",
        """
        ALTER TABLE scheduled_procedure_step ADD COLUMN told_by TEXT NOT NULL DEFAULT '';
        CREATE TABLE study_seen (
            study_instance_uid TEXT NOT NULL PRIMARY KEY, instances INTEGER NOT NULL,
            told_by TEXT NOT NULL, since TEXT NOT NULL);
        CREATE INDEX performed_procedure_step_station
            ON performed_procedure_step (performed_station_ae_title);
        CREATE INDEX performed_procedure_step_updated_at ON performed_procedure_step (updated_at);
        CREATE INDEX workitem_not_ready ON workitem (updated_at)
            WHERE state = 'SCHEDULED' AND readiness <> 'READY';
        """,
    ),
    (
        9,
        "an audit log that shows whether it was changed",
        """
        ALTER TABLE audit ADD COLUMN digest TEXT NOT NULL DEFAULT '';
        CREATE TRIGGER audit_not_changed BEFORE UPDATE ON audit
            BEGIN SELECT RAISE(ABORT, 'the audit log is never changed'); END;
        CREATE TRIGGER audit_not_erased BEFORE DELETE ON audit
            WHEN NOT EXISTS (SELECT 1 FROM mark WHERE name = 'audit purge')
            BEGIN SELECT RAISE(ABORT, 'the audit log is never erased'); END;
        """,
    ),
    (
        10,
        "when images were last counted",
        "ALTER TABLE study_seen ADD COLUMN seen_at TEXT NOT NULL DEFAULT ''",
    ),
    (
        11,
        "what a person has done to an exam can be taken back",
        """
        ALTER TABLE scheduled_procedure_step ADD COLUMN state_before TEXT NOT NULL DEFAULT '';
        ALTER TABLE scheduled_procedure_step ADD COLUMN changed_at TEXT NOT NULL DEFAULT '';
        """,
    ),
    (
        12,
        "which device was shown an exam first when, studies that are known to be without an order",
        """
        CREATE TABLE step_seen (
            step_id INTEGER NOT NULL REFERENCES scheduled_procedure_step (id), ae_title TEXT NOT NULL,
            at TEXT NOT NULL, PRIMARY KEY (step_id, ae_title)) WITHOUT ROWID;
        CREATE TABLE settled_study (
            study_instance_uid TEXT NOT NULL PRIMARY KEY, why TEXT NOT NULL, at TEXT NOT NULL);
        """,
    ),
    (
        13,
        "changes of patients and exams can be taken back",
        """
        CREATE TABLE undo_note (
            id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, about TEXT NOT NULL, what TEXT NOT NULL,
            who TEXT NOT NULL, at TEXT NOT NULL, images TEXT NOT NULL);
        CREATE INDEX undo_note_about ON undo_note (about);
        """,
    ),
    (
        14,
        "the initials of patients",
        """
        ALTER TABLE patient ADD COLUMN initials TEXT NOT NULL DEFAULT '';
        UPDATE patient SET initials = initials_of(patient_name);
        CREATE INDEX patient_initials ON patient (initials);
        """,
    ),
)
