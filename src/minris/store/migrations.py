"""How the schema has changed since the first release: each step once, in order."""

# The schema of the first release; an older one was never released.
BASELINE = 14

# Append-only: what has been released is never changed, a change is a new row of (number, what,
# SQL). A new store is made from the models, and has them all.
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
)


def newest_schema() -> int:
    """The number of the schema that this program knows."""
    return MIGRATIONS[-1][0] if MIGRATIONS else BASELINE
