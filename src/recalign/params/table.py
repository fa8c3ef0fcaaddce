"""`table`: your own log, and what its columns are called."""

from recalign.params.section import Section


class TableParams(Section):
    interactions: str
    items: str | None
    user: str
    item: str
    title: str
    timestamp: str | None
    rating: str | None
    min_rating: float | None = None  # params.yaml files from before it have no such key
    attributes: tuple[str, ...]
    available_from: str | None = None
    noun: str
    columns: tuple[str, ...] | None = None
    items_columns: tuple[str, ...] | None = None
