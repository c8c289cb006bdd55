"""Table of devices that send more than their budget: see ingest.flooding and broker.io.process."""

from sqlalchemy import Column, Index, String, Table

from shoal.controller.store.columns import count, metadata, number

flood = Table(  # a row for each that did lately
    "flood",
    metadata,
    Column("device", String(63), primary_key=True),
    number("since"),
    number("refused_at"),
    count("messages"),
    count("bytes"),
    number("cut_until"),  # the broker refuses its connection until then; 0: it was not cut off
    count("cuts"),
    Index("ix_flood_cut", "cut_until"),
)
