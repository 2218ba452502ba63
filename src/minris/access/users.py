"""Users, sessions, API tokens, rights of roles."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from minris import log
from minris.access.context import Context, audit
from minris.config.ini import Config
from minris.config.values import ROLES, SCREEN_ROLE, TOKEN_ROLES
from minris.standard.dictionary import is_ae_title
from minris.standard.status import Message, Problem, Refusal, Status
from minris.store.models import LoginFailure, Session, Token, User, database
from minris.store.rows import get_mark, row_exists, set_mark


def hash_password(password: str) -> str:
    """The scrypt hash of a password, n=2¹⁴, r=8, p=1, with its parameters and random salt."""
    salt = secrets.token_bytes(16)
    digest = hashlib.scrypt(password.encode(), salt=salt, n=1 << 14, r=8, p=1)
    return f"scrypt$14$8$1${salt.hex()}${digest.hex()}"


def check_password(password: str, stored: str) -> bool:
    """Whether a password has this hash; compared in constant time."""
    _, n, r, p, salt, digest = stored.split("$")
    found = hashlib.scrypt(
        password.encode(), salt=bytes.fromhex(salt), n=1 << int(n), r=int(r), p=int(p)
    )
    return hmac.compare_digest(found.hex(), digest)


def digest_of(secret: str) -> str:
    """The hash of a random secret, as stored."""
    return hashlib.sha256(secret.encode()).hexdigest()


WRONG_PASSWORD = Message("The name or the password is wrong")
TOO_MANY = Message("Too many failed attempts. Try again in 15 minutes.")
# An unknown user takes as long to refuse as a wrong password.
_NOBODY = "scrypt$14$8$1$" + "00" * 16 + "$" + "00" * 64


FIRST_USER = "admin"


def first_password_file(config: Config) -> Path:
    """The file with the password of the first start, beside the store."""
    return config.store_path.with_name("minris-admin-password.txt")


def _forget_first_password(ctx: Context, name: str) -> None:
    """Delete the file with the first password, which is none any more."""
    if name == FIRST_USER:
        path = first_password_file(ctx.config)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot delete %s: %s", path, error)


FIRST_PASSWORD = "first password"  # the mark with the digest of its hash


def make_first_user(ctx: Context, password: str) -> None:
    """Add the user of the first start, and remember that nobody has chosen this password."""
    user = make_user(ctx, FIRST_USER, "admin", password)
    set_mark(FIRST_PASSWORD, digest_of(user.password))


def has_first_password() -> bool:
    """Whether the password of the first start is still in use."""
    user = User.get_or_none(User.name == FIRST_USER)
    return user is not None and digest_of(user.password) == get_mark(FIRST_PASSWORD)


def make_user(ctx: Context, name: str, role: str, password: str) -> User:
    """Add a user, or change role and password of an existing one; a new password ends its sessions.

    password  empty for an existing one: it stays
    Refuses  0106 for an invalid name, an unknown role, a password of fewer than 8 characters
    """
    words = None
    if not re.fullmatch(r"[^\s:@/]{1,64}", name):
        words = Message("A user name has 1 to 64 characters, without spaces and : @ /")
    elif role not in ROLES:
        words = Message("There is no role {role}", role=role)
    if words:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, words, [Problem(0, words)])
    user = User.get_or_none(User.name == name)
    if password or not user:
        _check_new_password(password)
    if role != "admin":
        _check_not_last_administrator(name)
    user = user or User(name=name, created_at=ctx.stamp())
    user.role = role
    if password:
        user.password = hash_password(password)
    user.save()
    if password:
        Session.delete().where(Session.user == user).execute()
        _forget_first_password(ctx, name)
    audit(ctx, "user set", name, role)
    return user


def _check_new_password(password: str) -> None:
    """Refuse (0106) a password of fewer than 8 characters."""
    if len(password) < 8:
        words = Message("A password has at least 8 characters")
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, words, [Problem(0, words)])


def _check_not_last_administrator(name: str) -> None:
    """Refuse (0110) to remove the last administrator."""
    admins = [user.name for user in User.select().where(User.role == "admin")]
    if admins == [name]:
        raise Refusal(Status.PROCESSING_FAILURE, Message("This is the last administrator"))


def _find_user(name: str) -> User:
    """The user of a name. Refuses 0112."""
    if not (user := User.get_or_none(User.name == name)):
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no user {name}", name=name))
    return user


def delete_user(ctx: Context, name: str) -> None:
    """Delete a user. Refuses 0112 for an unknown one, 0110 for the last administrator."""
    user = _find_user(name)
    _check_not_last_administrator(name)
    Session.delete().where(Session.user == user).execute()
    User.delete().where(User.id == user.id).execute()
    _forget_first_password(ctx, name)
    audit(ctx, "user deleted", name)


def failure_keys(ctx: Context, name: str) -> tuple[str, str]:
    """The keys of a failed login: its user, and its address with its user."""
    user = name.casefold()[:64]
    return f"user {user}", f"address {ctx.actor.address} {user}"


def failures_of(ctx: Context, name: str) -> int:
    """The failed logins of a user, or the users who failed at the caller's address, if more.

    Of the last 15 minutes. Behind one address there may be a whole clinic: only many different
    names are a sign that somebody there is guessing.
    """
    of_user, since = failure_keys(ctx, name)[0], ctx.stamp(minutes=-15)
    at = f"address {ctx.actor.address} "
    ((times, users),) = database.execute_sql(
        "SELECT (SELECT count(*) FROM login_failure WHERE who = ? AND at > ?), count(DISTINCT who)"
        " FROM login_failure WHERE who BETWEEN ? AND ? AND at > ?",
        (of_user, since, at, f"{at}\U0010ffff", since),
    )
    return max(int(times), int(users))


class Proof(NamedTuple):
    """Whose password was right. It holds until the user gets another one, or is deleted.

    password  the hash that it was compared with
    """

    user_id: int
    password: str


def authenticate(ctx: Context, name: str, password: str) -> Proof:
    """The proof that somebody is the user with this name and password.

    Refuses 0124 for a wrong name or password, 0213 after too many failed logins in 15 minutes
    """
    if failures_of(ctx, name) >= ctx.config.web.login_attempts:
        raise Refusal(Status.RESOURCE_LIMITATION, TOO_MANY)
    user = User.get_or_none(User.name == name)
    if check_password(password, user.password if user else _NOBODY) and user:
        return Proof(int(user.id), str(user.password))
    raise Refusal(Status.NOT_AUTHORIZED, WRONG_PASSWORD)


def note_login_failure(ctx: Context, name: str) -> None:
    """Count a failed login; delete the expired ones."""
    LoginFailure.delete().where(LoginFailure.at < ctx.stamp(minutes=-15)).execute()
    for who in failure_keys(ctx, name):
        LoginFailure.create(who=who, at=ctx.stamp())
    audit(ctx, "login failed", name[:64])


KNOWN_HOURS = 24  # as long as it has expired, a session tells whose form it is that comes


def open_session(ctx: Context, user_id: int, password: str = "") -> str:
    """Open a session of a user; return the secret for its cookie.

    password  the hash of a Proof
    Refuses   0124 for a proof that holds no longer, and for a user who was deleted
    """
    user, secret = User.get_or_none(User.id == user_id), secrets.token_urlsafe(32)
    if not user or (password and user.password != password):
        raise Refusal(Status.NOT_AUTHORIZED, WRONG_PASSWORD)
    Session.delete().where(Session.expires_at < ctx.stamp(hours=-KNOWN_HOURS)).execute()
    Session.create(
        digest=digest_of(secret),
        user=user,
        csrf=secrets.token_urlsafe(32),
        created_at=ctx.stamp(),
        expires_at=ctx.stamp(hours=ctx.config.web.session_hours),
    )
    audit(ctx, "login", user.name)
    return secret


def change_password(ctx: Context, secret: str, proof: Proof, password: str) -> str:
    """Change the password of a user who is logged in; return the session's new secret.

    The other sessions of the user end. The role stays what it is now.

    secret   of the session
    Refuses  0106 for a password of fewer than 8 characters; 0124 if by now the session has ended,
             or the proof holds no longer
    """
    _check_new_password(password)
    here = Session.get_or_none(
        (Session.digest == digest_of(secret)) & (Session.expires_at > ctx.stamp())
    )
    if not here or Proof(here.user.id, here.user.password) != proof:
        raise Refusal(Status.NOT_AUTHORIZED, Message("Log in first"))
    renewed, until = secrets.token_urlsafe(32), ctx.stamp(hours=ctx.config.web.session_hours)
    User.update(password=hash_password(password)).where(User.id == proof.user_id).execute()
    Session.delete().where(
        (Session.user == proof.user_id) & (Session.digest != here.digest)
    ).execute()
    Session.update(digest=digest_of(renewed), expires_at=until).where(
        Session.digest == here.digest
    ).execute()
    _forget_first_password(ctx, here.user.name)
    audit(ctx, "password changed", here.user.name)
    return renewed


def form_token(csrf: str, nonce: str) -> str:
    """The CSRF token of a form: a nonce and its HMAC with the session's secret."""
    return nonce + hmac.new(csrf.encode(), nonce.encode(), "sha256").hexdigest()[:32]


class Login(NamedTuple):
    """The user or API token that a request comes from.

    ae_titles  of a token: the AE titles that it may act for
    """

    name: str
    role: str
    csrf: str = ""
    ae_titles: tuple[str, ...] = ()

    @property
    def form_token(self) -> str:
        """A new CSRF token for a form; always different, so that no page repeats the secret."""
        return self.csrf and form_token(self.csrf, secrets.token_hex(8))

    def sent(self, token: str) -> bool:
        """Whether a token comes from a form of this session."""
        expected = form_token(self.csrf, token[:16])
        return hmac.compare_digest(token.encode(), expected.encode())

    def speaks_for(self, ae_title: str) -> bool:
        """Whether it may subscribe an AE, or receive the AE's events."""
        return self.role == "admin" or ae_title in self.ae_titles


def logins_of(ctx: Context) -> list[tuple[str, str, int, str]]:
    """Name, role, number of open sessions, and start of the latest one, per user."""
    cursor = database.execute_sql(
        "SELECT u.name, u.role, count(s.digest), coalesce(max(s.created_at), '') FROM user u"
        " LEFT JOIN session s ON s.user_id = u.id AND s.expires_at > ?"
        " GROUP BY u.id ORDER BY u.name",
        (ctx.stamp(),),
    )
    return list(cursor)


def tokens_of() -> list[tuple[str, str, str, str]]:
    """Name, role, AE titles and time of creation, per API token."""
    sql = "SELECT name, role, ae_titles, created_at FROM token ORDER BY name"
    return list(database.execute_sql(sql))


def end_sessions(ctx: Context, name: str) -> int:
    """End all sessions of a user; return their number. Refuses 0112.

    Whose form comes meanwhile is still known: what was typed is kept for the next login.
    """
    user, now = _find_user(name), ctx.stamp()
    ending = (Session.user == user) & (Session.expires_at > now)
    count: int = Session.update(expires_at=now).where(ending).execute()
    audit(ctx, "sessions ended", name, str(count))
    return count


def find_session(ctx: Context, secret: str) -> Login | None:
    """The login of a cookie, None if unknown or expired."""
    row = database.execute_sql(
        "SELECT u.name, u.role, s.csrf FROM session s JOIN user u ON u.id = s.user_id"
        " WHERE s.digest = ? AND s.expires_at > ?",
        (digest_of(secret), ctx.stamp()),
    ).fetchone()
    return Login(*row) if row else None


def was_session(secret: str) -> bool:
    """Whether a cookie is that of a session, also of one that expired within KNOWN_HOURS."""
    return row_exists(Session, "digest", digest_of(secret))


def end_session(ctx: Context, secret: str) -> None:
    """End a session."""
    Session.delete().where(Session.digest == digest_of(secret)).execute()
    audit(ctx, "logout", ctx.actor.name)


def make_token(ctx: Context, name: str, role: str, ae_titles: Iterable[str] = ()) -> str:
    """Create an API token, replacing one of the same name; return its secret. Refuses 0106.

    ae_titles  AE titles that it may subscribe and open WebSockets for; admin tokens need none
    """
    if not name or role not in TOKEN_ROLES:
        raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, Message("A token needs a name and a role"))
    titles = [title.strip() for title in ae_titles]
    for title in titles:
        if not is_ae_title(title):
            words = Message("{ae} is not an AE title", ae=repr(title))
            raise Refusal(Status.INVALID_ATTRIBUTE_VALUE, words)
    secret = secrets.token_urlsafe(32)
    Token.delete().where(Token.name == name).execute()
    Token.create(
        name=name,
        role=role,
        digest=digest_of(secret),
        created_at=ctx.stamp(),
        ae_titles="\\".join(titles),
    )
    audit(ctx, "token made", name, f"{role}{': ' if titles else ''}{', '.join(titles)}")
    return secret


def delete_token(ctx: Context, name: str) -> None:
    """Delete an API token. Refuses 0112 for an unknown one."""
    if not Token.delete().where(Token.name == name).execute():
        raise Refusal(Status.NO_SUCH_SOP_INSTANCE, Message("There is no token {name}", name=name))
    audit(ctx, "token deleted", name)


def find_token(secret: str) -> Login | None:
    """The login of an API token, None if unknown."""
    row = database.execute_sql(
        "SELECT name, role, ae_titles FROM token WHERE digest = ?", (digest_of(secret),)
    ).fetchone()
    if not row:
        return None
    name, role, titles = row
    return Login(name, role, ae_titles=tuple(titles.split("\\")) if titles else ())


def is_screen(secret: str) -> bool:
    """Whether this is the token of a screen of the waiting room."""
    login = find_token(secret) if secret else None
    return login is not None and login.role == SCREEN_ROLE


def permit(role: str, least: str) -> bool:
    """Whether a role includes the rights of another one."""
    return role in ROLES and ROLES.index(role) >= ROLES.index(least)
