"""What all tables share: how constraints are named, ids, and times in UTC."""

from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema, to_json
from sqlalchemy import BigInteger, DateTime, Enum, Identity, MetaData, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

MAX_ID = 2**63 - 1
# Moves on within a transaction, and is one and the same for all columns of a statement.
NOW = func.statement_timestamp()


class Base(DeclarativeBase):
    # Names that do not depend on the database's whim, so that a migration can drop what it made.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - declared so by SQLAlchemy
        datetime: DateTime(timezone=True)
    }
    # What the server fills in comes back with the INSERT or UPDATE itself, by RETURNING.
    __mapper_args__ = {  # noqa: RUF012
        "eager_defaults": True
    }


def one_of(kinds: type[StrEnum], name: str) -> Enum:
    """The type of a column that holds one of these as text, which a constraint checks."""
    return Enum(
        kinds,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=16,
        values_callable=lambda them: [it.value for it in them],
    )


class Identified:
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True, sort_order=-1)


class Timed:
    create_dt: Mapped[datetime] = mapped_column(server_default=NOW, sort_order=1)
    update_dt: Mapped[datetime] = mapped_column(server_default=NOW, sort_order=1)


class Shape(BaseModel):
    """What a client sends or receives; a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", from_attributes=True)


def version(edited: bytes) -> str:
    """The name of what something's editors have made of it, out of that as JSON."""
    return sha256(edited).hexdigest()[:16]


class Versioned(Shape):
    """Something that is edited; its version changes with what its editors edit, and no more."""

    def edited(self) -> list[Any]:
        """All that an edit may change, in an order that stays."""
        raise NotImplementedError

    def version(self) -> str:
        # Of what it says, so that no edit can forget to count it.
        return version(to_json(self.edited()))


# In a shape's JSON Schema.
NO_NUL: dict[str, Any] = {"not": {"pattern": r"\u0000"}}


class _Storable:
    """Text that PostgreSQL can hold: all but U+0000; the document says so too."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(schema) | NO_NUL

    @staticmethod
    def _check(text: str) -> str:
        if "\0" in text:
            raise ValueError("must not contain the character U+0000")
        return text


storable = _Storable()
Storable = Annotated[str, storable]


def _number(value: Any) -> Any:
    if isinstance(value, (bool, str)):
        raise ValueError("must be a number")
    return value


# In JSON, where `true` is no 1, and "1" none either; 1.0 is (JSON Schema, section 6.1.1).
Integer = Annotated[int, BeforeValidator(_number)]


class Message(Shape):
    message: str


class CursorQuery(Shape):
    limit: int = Field(20, ge=1, le=100, description="How many, at most.")
    cursor: Annotated[str | None, WithJsonSchema({"type": "string", "format": "cursor"})] = Field(
        None,
        min_length=1,
        # Of a reply at depth 100, it holds a hundred ids.
        max_length=3000,
        description="Where the last page ended, as its `Link` header says. It carries the order.",
    )
