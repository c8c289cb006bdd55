"""The schema's metadata, columns that many tables have (never null), and text in LIKE patterns."""

from sqlalchemy import Column, Float, Integer, MetaData, Text

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def number(name: str, default: float = 0) -> Column[float]:
    return Column(name, Float, nullable=False, server_default=str(default))


def text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False, server_default="")


def count(name: str) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default="0")


def like_text(text: str) -> str:
    """The text in a LIKE pattern as it is: for `like(..., escape="\\")`."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
