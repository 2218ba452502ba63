"""The audit log has a bound in bytes and in days; what it lets go is told, and the chain holds."""

import gzip
import json

import pytest
from test_housekeeping import at, keeping

from minris.access.context import audit, audit_digest, audit_lines, check_audit, purge_audit
from minris.housekeeping.auditing import archive_audit, purge_archives
from minris.housekeeping.retention import purge
from minris.store.models import Audit, database


def bounded(ctx):
    """The same circumstances with a small bound."""
    ctx.config.housekeeping.audit_megabytes = 1
    return ctx


def fill(ctx, count, length=1000):
    with database.atomic():
        for number in range(count):
            audit(ctx, "login", f"user {number}", "验" * (length // 3))


def archived(ctx):
    return sorted(ctx.config.backup_folder.glob("audit-*"))


def lines_of(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_a_small_audit_log_stays_as_it_is(ctx):
    fill(ctx, 100)
    assert archive_audit(bounded(ctx)) == 0
    assert archived(ctx) == []


def test_the_oldest_lines_beyond_the_bound_go_to_a_file_and_the_chain_holds(ctx):
    """None is lost: file and store together are the whole chain."""
    fill(ctx, 1200)
    before = [[row.id, row.at, row.who, row.what, row.about, row.detail, row.digest]
              for row in Audit.select().order_by(Audit.id)]  # fmt: skip
    count = archive_audit(bounded(ctx))
    [path] = archived(ctx)
    kept = Audit.select().where(Audit.what == "login").count()
    assert lines_of(path) == before[:count]
    assert kept == len(before) - count
    assert check_audit().broken is None
    assert path.stat().st_mode & 0o077 == 0
    [line] = audit_lines("archived")
    assert (line.about, before[count - 1][-1] in line.detail) == (path.name, True)
    assert archive_audit(bounded(ctx)) == 0
    digest = lines_of(path)[0][-1]
    for _, *line, said in lines_of(path)[1:]:
        digest = audit_digest(digest, tuple(line))
        assert digest == said


def test_a_line_cut_off_behind_the_file_is_found(ctx):
    fill(ctx, 1200)
    archive_audit(bounded(ctx))
    database.execute_sql("DROP TRIGGER audit_not_erased")
    database.execute_sql("DELETE FROM audit WHERE id = (SELECT min(id) FROM audit)")
    assert check_audit().broken is not None


def test_what_cannot_be_written_stays(ctx, caplog):
    fill(ctx, 1200)
    ctx.config.backup_folder.write_text("a file where the folder is to be")
    assert archive_audit(bounded(ctx)) == 0
    assert Audit.select().count() == 1200
    assert "cannot archive the oldest audit lines" in caplog.text


def test_files_end_with_the_days_of_their_lines(ctx):
    fill(at(ctx, days=-60), 1200)
    archive_audit(bounded(at(ctx, days=-60)))
    purge(keeping(ctx, audit=90))
    assert len(archived(ctx)) == 1
    assert purge(keeping(ctx, audit=30))["audit files"] == 1
    assert archived(ctx) == []
    assert check_audit().broken is None
    assert "audit files" in audit_lines("purged")[0].detail


@pytest.mark.parametrize("last_too", [False, True])
def test_the_chain_goes_on_from_lines_that_were_purged(ctx, last_too):
    fill(at(ctx, days=-60), 3)
    if not last_too:
        fill(ctx, 2)
    purge_audit(ctx.stamp(days=-30))
    fill(ctx, 2)
    assert Audit.select().count() == 2 + 2 * (not last_too)
    assert check_audit().broken is None


def test_a_clock_that_was_wrong_for_a_while_leaves_no_hole(ctx):
    """Lines are let go from the front alone, whatever their times."""
    fill(ctx, 2)
    fill(at(ctx, days=-4000), 2)
    fill(ctx, 2)
    assert purge_audit(ctx.stamp(days=-30)) == 0
    assert check_audit().broken is None


def test_files_have_a_bound_in_bytes_and_the_chain_is_checked_from_the_line_about_them(ctx):
    """The oldest goes first; what is left follows from the digest that the audit log keeps."""
    for _ in range(3):
        fill(ctx, 1200)
        archive_audit(bounded(ctx))
    first, *others = archived(ctx)
    assert len(others) >= 2
    with first.open("ab") as file:  # more than the bound together
        file.truncate(2 << 20)
    ctx.config.housekeeping.audit_files_megabytes = 1
    assert purge(ctx)["audit files"] == 1
    assert archived(ctx) == others
    [line] = audit_lines("audit file deleted")
    assert line.about == first.name
    assert check_audit().broken is None


def test_the_digest_of_a_deleted_file_is_that_from_which_the_next_one_follows(ctx, monkeypatch):
    for _ in range(2):
        fill(ctx, 1200)
        archive_audit(bounded(ctx))
    first, second = archived(ctx)
    digest = lines_of(first)[-1][-1]
    _, *line, said = lines_of(second)[0]
    assert audit_digest(digest, tuple(line)) == said
    monkeypatch.setattr(ctx.config.housekeeping, "audit_files_megabytes", 0)
    assert purge_archives(ctx)
    [told] = audit_lines("audit file deleted")
    assert told.detail.endswith(f"their last digest is {digest}")
    assert archived(ctx) == [second]
