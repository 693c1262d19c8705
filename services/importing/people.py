"""People of another board: their accounts, under names that are free here, and whom they follow."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import ARRAY, BigInteger, String, any_, bindparam, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from models.follow import Follow
from models.imported import Kind
from models.nickname import Nickname, nickname_key
from models.record import FollowRecord, UserRecord
from models.user import User, email_key
from services import bulk
from services.importing.arrival import Arrival, Found, users_here
from services.importing.arrivals import Degree
from services.passwords import UNUSABLE, is_usable

_NICKNAME: TypeAdapter[str] = TypeAdapter(Nickname)
_LONGEST = 50
# What somebody is called whose nickname shows nothing.
_NAMELESS = "user"
User_ = Found[UserRecord]


class AnotherBoard(Exception):
    """What was taken under this name before is another board's."""


class Accounts:
    """Opens accounts; knows, as long as it does, which names a rehearsal would have given out."""

    def __init__(self, arrival: Arrival) -> None:
        self._arrival = arrival
        self._numbers: Counter[str] = Counter()
        self._emails: dict[str, int] = {}
        self._nicknames: set[str] = set()

    async def require_same(self, users: Sequence[User_]) -> None:
        """See that users who were taken before are still those; raises AnotherBoard."""
        async with self._arrival.sessions() as db, db.begin():
            old_ids = [user.record.id for user in users]
            known = await self._arrival.book.known(db, Kind.USERS, old_ids)
            found = await db.execute(_ADDRESSES, {"ids": [id_ for id_ in known.values() if id_]})
            address = dict(found.all())
        for user in users:
            key = address.get(known.get(user.record.id) or 0)
            if key is not None and key != email_key(user.record.email):
                raise AnotherBoard

    async def take(self, users: Sequence[User_]) -> None:
        """Open an account for each, or find the one that is here already."""
        while users:
            async with self._arrival.sessions() as db, db.begin():
                users = await self._take(db, users)

    async def _take(self, db: AsyncSession, users: Sequence[User_]) -> list[User_]:
        """Take as many as one transaction can; gives those who are left for the next one."""
        by_key: dict[str, User_] = {}
        for user in users:
            by_key.setdefault(email_key(user.record.email), user)
        here = dict((await db.execute(_HERE, {"keys": list(by_key)})).all())
        here |= {key: self._emails[key] for key in by_key if key in self._emails}
        opened = await self._open(db, {k: user for k, user in by_key.items() if k not in here})
        taken: dict[str, int | None] = {
            by_key[key].record.id: id_ for key, id_ in (here | opened).items()
        }
        await self._arrival.book.note(db, Kind.USERS, taken)
        for key in here:
            self._remark(by_key[key], Degree.CHANGED, f"{key} has an account here, which is used")
        self._arrival.report.known[Kind.USERS] += len(here)
        self._arrival.report.taken[Kind.USERS] += len(opened)
        # Two of one address; and whoever has signed up here at this very moment.
        return [user for user in users if user.record.id not in taken]

    async def _open(self, db: AsyncSession, users: Mapping[str, User_]) -> dict[str, int]:
        """Open accounts; gives their ids by the keys of their addresses."""
        if not users:
            return {}
        names = await self._names(db, [user.record.nickname or "" for user in users.values()])
        named = dict(zip(users, names, strict=True))
        if self._arrival.rehearsal:
            opened = dict(zip(users, self._arrival.book.unreal(len(users)), strict=True))
            self._emails |= opened
            self._nicknames |= {nickname_key(name) for name in names}
        else:
            rows = [self._row(key, user.record, named[key]) for key, user in users.items()]
            added = insert(User).on_conflict_do_nothing().returning(User.email_key, User.id)
            opened = dict((await db.execute(added, rows)).all())
        for key in opened:
            self._tell(users[key], named[key])
        return opened

    def _row(self, key: str, user: UserRecord, nickname: str) -> dict[str, Any]:
        create_dt = user.create_dt or self._arrival.began
        usable = user.password_hash is not None and is_usable(user.password_hash)
        return {
            "email": user.email,
            "email_key": key,
            "password_hash": user.password_hash if usable else UNUSABLE,
            "nickname": nickname,
            "nickname_key": nickname_key(nickname),
            "bio": user.bio,
            "is_admin": user.is_admin,
            "verified_dt": user.verified_dt,
            "create_dt": create_dt,
            "update_dt": user.update_dt or create_dt,
        }

    def _tell(self, user: User_, nickname: str) -> None:
        """Say what is not as it was of an account that was opened."""
        wanted, password_hash = user.record.nickname, user.record.password_hash
        if nickname != wanted:
            fits = wanted is not None and _fit(wanted) == wanted
            why = f"the nickname {wanted!r} is taken" if fits else "the nickname cannot be one here"
            self._remark(user, Degree.CHANGED, f"{why}; it is {nickname!r} now")
        if user.record.is_admin:
            self._remark(user, Degree.CHANGED, f"{user.record.email} is an administrator here, too")
        if not (password_hash and is_usable(password_hash)):
            why = "the password is hashed in a way that is not known here; it has to be reset"
            self._remark(user, Degree.LESSENED, why)

    def _remark(self, user: User_, degree: Degree, why: str) -> None:
        self._arrival.report.remark(Kind.USERS, user.row, degree, why)

    async def _names(self, db: AsyncSession, wanted: Sequence[str]) -> list[str]:
        """A free nickname for each: the one that is wanted, if it can be."""
        fit = [_fit(nickname) for nickname in wanted]
        taken = await self._taken(db, fit)
        names = []
        for nickname in fit:
            if nickname_key(nickname) in taken:
                nickname = await self._variant(db, nickname, taken)
            taken.add(nickname_key(nickname))
            names.append(nickname)
        return names

    async def _variant(self, db: AsyncSession, nickname: str, given: set[str]) -> str:
        """The nickname with the first number that is free."""
        key = nickname_key(nickname)
        for start in count(max(self._numbers[key] + 1, 2), 20):
            variants = {n: _numbered(nickname, n) for n in range(start, start + 20)}
            taken = given | await self._taken(db, list(variants.values()))
            for n, variant in variants.items():
                if nickname_key(variant) not in taken:
                    self._numbers[key] = n
                    return variant
        raise AssertionError("numbers have no end")

    async def _taken(self, db: AsyncSession, nicknames: Sequence[str]) -> set[str]:
        keys = {nickname_key(nickname) for nickname in nicknames}
        return {*await db.scalars(_NICKNAMES, {"keys": list(keys)})} | (keys & self._nicknames)


def _fit(nickname: str) -> str:
    """The nickname as this board can have it."""
    for attempt in (nickname, "".join(filter(str.isprintable, nickname)).strip()[:_LONGEST]):
        try:
            return _NICKNAME.validate_python(attempt)
        except ValidationError:
            continue
    return _NAMELESS


def _numbered(nickname: str, number: int) -> str:
    suffix = f"-{number}"
    return nickname[: _LONGEST - len(suffix)] + suffix


async def take_follows(arrival: Arrival, follows: Sequence[Found[FollowRecord]]) -> None:
    """Let users follow each other as they did."""
    report = arrival.report
    async with arrival.sessions() as db, db.begin():
        ends = [it for f in follows for it in (f.record.follower_id, f.record.followed_id)]
        users = await users_here(db, arrival, ends, counting=not arrival.rehearsal)
        pairs: dict[tuple[int, int], Found[FollowRecord]] = {}
        taken: dict[str, int | None] = {}
        for follow in follows:
            by, of = follow.record.follower_id, follow.record.followed_id
            if gone := [it for it in (by, of) if it not in users]:
                report.skip(Kind.FOLLOWS, follow.row, f"user {gone[0]} is not on this board")
            elif users[by] == users[of]:
                report.skip(Kind.FOLLOWS, follow.row, "nobody follows themselves here")
            else:
                # Of two old accounts that are one here, both may follow somebody.
                pairs.setdefault((users[by], users[of]), follow)
                taken[follow.record.key()] = None
        new = await _follow(db, arrival, pairs)
        await arrival.book.note(db, Kind.FOLLOWS, taken)
    report.taken[Kind.FOLLOWS] += len(new)
    report.known[Kind.FOLLOWS] += len(taken) - len(new)


async def _follow(
    db: AsyncSession, arrival: Arrival, pairs: Mapping[tuple[int, int], Found[FollowRecord]]
) -> list[tuple[int, int]]:
    """Write the follows that are not there yet, and count them; their users are locked."""
    both = tuple_(Follow.follower_id, Follow.followed_id)
    there = {tuple(row) for row in await db.execute(select(*both.clauses).where(both.in_(pairs)))}
    new = [pair for pair in pairs if pair not in there]
    if arrival.rehearsal or not new:
        return new
    rows = [
        {
            "follower_id": pair[0],
            "followed_id": pair[1],
            "create_dt": pairs[pair].record.create_dt or arrival.began,
        }
        for pair in new
    ]
    await bulk.write(db, Follow, rows)
    await bulk.add(db, User.following_count, Counter(by for by, _ in new))
    await bulk.add(db, User.follower_count, Counter(of for _, of in new))
    return new


_HERE = select(User.email_key, User.id).where(
    User.email_key == any_(bindparam("keys", type_=ARRAY(String)))
)
_ADDRESSES = select(User.id, User.email_key).where(
    User.id == any_(bindparam("ids", type_=ARRAY(BigInteger))), User.leaving_dt.is_(None)
)
_NICKNAMES = select(User.nickname_key).where(
    User.nickname_key == any_(bindparam("keys", type_=ARRAY(String)))
)
