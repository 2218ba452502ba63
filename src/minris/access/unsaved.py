"""Logins while the store cannot be written; they end with this run."""

import collections
import secrets
import threading

from minris.access.context import Context
from minris.access.users import TOO_MANY, Login, Proof, digest_of, failure_keys
from minris.standard.status import Refusal, Status
from minris.store.models import User


class Unsaved:
    """Sessions and failed logins that the store could not keep.

    Who may log in sees the worklist all the same, and nobody tries passwords without limit.
    """

    MOST = 200  # sessions; of failed logins five times as many

    def __init__(self) -> None:
        self.sessions: dict[str, tuple[Proof, str, str]] = {}  # by digest of the cookie
        self.failures: collections.deque[tuple[str, str]] = collections.deque(maxlen=5 * self.MOST)
        self.lock = threading.Lock()

    def open(self, ctx: Context, proof: Proof) -> str:
        """Open a session; return the secret for its cookie."""
        secret, until = secrets.token_urlsafe(32), ctx.stamp(hours=ctx.config.web.session_hours)
        with self.lock:
            self.sessions[digest_of(secret)] = proof, secrets.token_urlsafe(32), until
            if len(self.sessions) > self.MOST:
                del self.sessions[next(iter(self.sessions))]
        return secret

    def find(self, ctx: Context, secret: str) -> Login | None:
        """The login of a cookie; None if unknown, expired, or of a user with another password."""
        if not (found := self.sessions.get(digest_of(secret))):
            return None
        proof, csrf, until = found
        user = User.get_or_none((User.id == proof.user_id) & (User.password == proof.password))
        return Login(user.name, user.role, csrf) if user and until > ctx.stamp() else None

    def knows(self, secret: str) -> bool:
        """Whether a cookie is that of a session, also of one that has expired."""
        return digest_of(secret) in self.sessions

    def end(self, secret: str) -> None:
        """End a session."""
        with self.lock:
            self.sessions.pop(digest_of(secret), None)

    def failed(self, ctx: Context, name: str) -> None:
        """Count a failed login."""
        self.failures.extend((who, ctx.stamp()) for who in failure_keys(ctx, name))

    def check(self, ctx: Context, name: str) -> None:
        """Refuse (0213) after too many of them in 15 minutes, counted as `failures_of` does."""
        since, (user, _) = ctx.stamp(minutes=-15), failure_keys(ctx, name)
        recent = [who for who, at in list(self.failures) if at > since]
        users = {who for who in recent if who.startswith(f"address {ctx.actor.address} ")}
        if max(recent.count(user), len(users)) >= ctx.config.web.login_attempts:
            raise Refusal(Status.RESOURCE_LIMITATION, TOO_MANY)
