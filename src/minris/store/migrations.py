"""Schema changes since the first release, in order."""

# The schema of the first release.
BASELINE = 14

# Append-only rows of (number, what, SQL): a released row is never changed. A new database is made
# from the models and has all changes.
MIGRATIONS: tuple[tuple[int, str, str], ...] = (
    (
        15,
        "one note for all that can be taken back; notes of the last day are dropped",
        """
        ALTER TABLE scheduled_procedure_step DROP COLUMN state_before;
        ALTER TABLE scheduled_procedure_step DROP COLUMN changed_at;
        DELETE FROM undo_note;
        """,
    ),
    (
        16,
        "one outbox",
        """
        CREATE TABLE outbox (
            id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, lane TEXT NOT NULL,
            receiver TEXT NOT NULL, event_id INTEGER REFERENCES workitem_event (id),
            commitment_id INTEGER REFERENCES commitment (id),
            operation TEXT NOT NULL DEFAULT 'N-EVENT-REPORT', sop_instance_uid TEXT,
            event_type INTEGER NOT NULL DEFAULT 0, data BLOB NOT NULL DEFAULT x'',
            created_at TEXT NOT NULL, sent_at TEXT NOT NULL DEFAULT '',
            given_up_at TEXT NOT NULL DEFAULT '', answer TEXT NOT NULL DEFAULT '',
            refused INTEGER NOT NULL DEFAULT 0, problem TEXT NOT NULL DEFAULT '');
        INSERT INTO outbox (id, kind, lane, receiver, event_id, created_at, sent_at, given_up_at,
                problem)
            SELECT id, 'event', CASE channel WHEN 'dimse' THEN 'events' ELSE channel END, receiver,
                event_id, created_at, sent_at, given_up_at, problem FROM outbox_event;
        -- behind the events, by a multiple of 65535: each keeps its Message ID
        INSERT INTO outbox (id, kind, lane, receiver, operation, sop_instance_uid, event_type, data,
                created_at, sent_at, given_up_at, answer, refused, problem)
            SELECT id + (SELECT (coalesce(max(id), 0) / 65535 + 1) * 65535 FROM outbox_event),
                CASE sop_class_uid WHEN '1.2.840.10008.3.1.2.3.3' THEN 'mpps'
                    WHEN '1.2.840.10008.3.1.2.3.5' THEN 'mpps_notification'
                    ELSE 'availability' END,
                'passed on', receiver, operation, sop_instance_uid, event_type, data, created_at,
                sent_at, given_up_at, answer, refused, problem FROM passed_on;
        INSERT INTO outbox (kind, lane, receiver, commitment_id, created_at, given_up_at)
            SELECT 'commitment result', 'commitment results', requester, id, judged_at,
                CASE state WHEN 'judged' THEN '' ELSE judged_at END
            FROM commitment WHERE state IN ('judged', 'given up') AND door = 'dimse' ORDER BY id;
        INSERT INTO outbox (kind, lane, receiver, commitment_id, operation, sop_instance_uid,
                event_type, created_at, sent_at, given_up_at, answer)
            SELECT 'commitment request', 'commitment requests', r.archive, c.id, 'N-ACTION',
                r.transaction_uid, 1, c.created_at, coalesce(nullif(asked_at, ''), answered_at),
                CASE WHEN asked_at = '' AND answered_at = '' THEN c.created_at ELSE '' END,
                CASE WHEN answered_at = '' THEN '' ELSE 'reported' END
            FROM commitment_relay r JOIN commitment c ON c.id = r.commitment_id ORDER BY r.id;
        CREATE INDEX outbox_due ON outbox (lane, receiver, id)
            WHERE sent_at = '' AND given_up_at = '';
        CREATE INDEX outbox_receiver ON outbox (receiver, id);
        CREATE INDEX outbox_event_id ON outbox (event_id);
        CREATE INDEX outbox_commitment_id ON outbox (commitment_id)
            WHERE commitment_id IS NOT NULL;
        CREATE INDEX outbox_sop_instance_uid ON outbox (sop_instance_uid)
            WHERE sop_instance_uid IS NOT NULL;
        CREATE INDEX outbox_passed_on ON outbox (id) WHERE lane = 'passed on';
        DROP TABLE outbox_event;
        DROP TABLE passed_on;
        DROP TABLE commitment_relay;
        ALTER TABLE receiver RENAME TO receiver_of_events;
        CREATE TABLE receiver (
            lane TEXT NOT NULL, ae_title TEXT NOT NULL, failures INTEGER NOT NULL DEFAULT 0,
            failing_s INTEGER NOT NULL DEFAULT 0, try_at TEXT NOT NULL DEFAULT '',
            problem TEXT NOT NULL DEFAULT '', heard_at TEXT NOT NULL DEFAULT '',
            PRIMARY KEY (lane, ae_title)) WITHOUT ROWID;
        INSERT INTO receiver
            SELECT 'events', ae_title, failures, failing_s, try_at, problem, heard_at
            FROM receiver_of_events;
        INSERT INTO receiver
            SELECT 'passed on', ae_title, failures, failing_s, try_at, problem, heard_at
            FROM destination;
        DROP TABLE receiver_of_events;
        DROP TABLE destination;
        UPDATE commitment SET try_at = '' WHERE state <> 'asked';
        DROP INDEX commitment_due;
        CREATE INDEX commitment_due ON commitment (try_at) WHERE state = 'asked';
        CREATE INDEX commitment_judged ON commitment (requester) WHERE state = 'judged';
        """,
    ),
    (
        17,
        "the patient of a performed step, compared; former identities",
        """
        ALTER TABLE performed_scheduled_step ADD COLUMN patient TEXT NOT NULL DEFAULT '';
        ALTER TABLE performed_scheduled_step ADD COLUMN told BLOB NOT NULL DEFAULT x'';
        CREATE INDEX performed_scheduled_step_differs ON performed_scheduled_step (performed_id)
            WHERE patient = 'differs';
        CREATE TABLE former_identity (
            id INTEGER NOT NULL PRIMARY KEY, patient_id INTEGER NOT NULL REFERENCES patient (id)
            ON DELETE CASCADE, former_id TEXT NOT NULL, data BLOB NOT NULL DEFAULT x'',
            at TEXT NOT NULL, merged INTEGER NOT NULL);
        CREATE INDEX former_identity_patient_id ON former_identity (patient_id);
        CREATE INDEX former_identity_former_id ON former_identity (former_id);
        WITH RECURSIVE change (now, old, at) AS (
            SELECT about, substr(detail, 1, instr(detail, ' -> ') - 1), at FROM audit
            WHERE what IN ('patients merged', 'patient corrected') AND instr(detail, ' -> ') > 1),
        former (patient_id, old, at) AS (
            SELECT p.id, c.old, c.at FROM patient p JOIN change c ON c.now = p.patient_id
            UNION
            SELECT f.patient_id, c.old, c.at FROM former f JOIN change c ON c.now = f.old)
        INSERT INTO former_identity (patient_id, former_id, at, merged)
            SELECT patient_id, old, max(at), 1 FROM former f
            WHERE old <> (SELECT p.patient_id FROM patient p WHERE p.id = f.patient_id)
            GROUP BY patient_id, old;
        """,
    ),
    (
        18,
        "identifiers of a store that was replaced are not given again",
        """
        CREATE TABLE lost_identifier (kind TEXT NOT NULL, value TEXT NOT NULL,
            PRIMARY KEY (kind, value)) WITHOUT ROWID;
        """,
    ),
    (
        19,
        "the audit log is read by what it is about",
        "CREATE INDEX audit_about ON audit (about);",
    ),
    (
        20,
        "imports in slices",
        """
        CREATE TABLE imported_file (
            id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, digest TEXT NOT NULL,
            name TEXT NOT NULL, how TEXT NOT NULL, who TEXT NOT NULL, state TEXT NOT NULL,
            problem TEXT NOT NULL DEFAULT '', left_out TEXT NOT NULL DEFAULT '[]',
            created_at TEXT NOT NULL, ended_at TEXT NOT NULL,
            wanted INTEGER NOT NULL, total INTEGER NOT NULL DEFAULT 0,
            done INTEGER NOT NULL DEFAULT 0, content BLOB NOT NULL);
        CREATE TABLE imported_step (import_id INTEGER NOT NULL, step_id INTEGER NOT NULL,
            PRIMARY KEY (import_id, step_id)) WITHOUT ROWID;
        CREATE INDEX imported_file_digest ON imported_file (digest);
        CREATE INDEX imported_file_state ON imported_file (state);
        """,
    ),
    (
        21,
        "times in which a device has no exams",
        """
        CREATE TABLE blocked_time (
            id INTEGER NOT NULL PRIMARY KEY, ae_title TEXT NOT NULL, first TEXT NOT NULL,
            last TEXT NOT NULL, reason TEXT NOT NULL, begins INTEGER NOT NULL, ends INTEGER NOT NULL,
            created_at TEXT NOT NULL);
        CREATE INDEX blocked_time_last ON blocked_time (last, ae_title);
        """,
    ),
    (
        22,
        "who changed which values of patients and exams",
        """
        CREATE TABLE value_change (
            id INTEGER NOT NULL PRIMARY KEY, about TEXT NOT NULL, at TEXT NOT NULL,
            who TEXT NOT NULL, what TEXT NOT NULL, before TEXT NOT NULL, after TEXT NOT NULL);
        CREATE INDEX value_change_about ON value_change (about);
        """,
    ),
    (
        23,
        "patients that an import changed; performed steps by patient; names found as typed now",
        """
        CREATE TABLE imported_patient (import_id INTEGER NOT NULL,
            patient_id INTEGER NOT NULL REFERENCES patient (id) ON DELETE CASCADE,
            before BLOB NOT NULL, after BLOB NOT NULL DEFAULT x'',
            PRIMARY KEY (import_id, patient_id)) WITHOUT ROWID;
        CREATE INDEX imported_patient_patient_id ON imported_patient (patient_id);
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
        ALTER TABLE performed_procedure_step ADD COLUMN patient_id TEXT NOT NULL DEFAULT '';
        UPDATE performed_procedure_step SET patient_id = text_of(data, 'PatientID');
        CREATE INDEX performed_procedure_step_patient_id ON performed_procedure_step (patient_id);
        CREATE INDEX performed_scheduled_step_told ON performed_scheduled_step (performed_id)
            WHERE told <> x'';
        UPDATE patient SET name_key = name_key(patient_name)
            WHERE name_key <> name_key(patient_name);
        UPDATE scheduled_procedure_step SET name_key = name_key(text_of(data, 'PatientName'))
            WHERE name_key GLOB '*[^ -~]*';
        UPDATE workitem SET name_key = name_key(text_of(data, 'PatientName'))
            WHERE name_key GLOB '*[^ -~]*';
        """,
    ),
    (
        24,
        "preparation of procedures; referring physicians of orders",
        """
        ALTER TABLE procedure ADD COLUMN preparation TEXT NOT NULL DEFAULT '';
        CREATE TABLE referrer (name TEXT NOT NULL PRIMARY KEY, used_at TEXT NOT NULL);
        CREATE INDEX referrer_used_at ON referrer (used_at);
        """,
    ),
    (
        25,
        "numbers of the waiting room",
        """
        CREATE TABLE waiting_number (
            day TEXT NOT NULL, patient_id INTEGER NOT NULL REFERENCES patient (id)
            ON DELETE CASCADE, number INTEGER NOT NULL, called_step INTEGER NOT NULL DEFAULT 0,
            called_at TEXT NOT NULL DEFAULT '', PRIMARY KEY (day, patient_id)) WITHOUT ROWID;
        CREATE UNIQUE INDEX waiting_number_number ON waiting_number (day, number);
        CREATE INDEX waiting_number_patient_id ON waiting_number (patient_id);
        """,
    ),
    (
        26,
        "who has viewed which patient",
        """
        CREATE TABLE patient_view (
            id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, who TEXT NOT NULL,
            address TEXT NOT NULL, what TEXT NOT NULL,
            patient_id INTEGER NOT NULL REFERENCES patient (id) ON DELETE CASCADE);
        CREATE INDEX patient_view_patient_id ON patient_view (patient_id, who);
        """,
    ),
)


def newest_schema() -> int:
    """The number of the newest schema."""
    return MIGRATIONS[-1][0] if MIGRATIONS else BASELINE
