"""MovieLens 100K (u.data, u.item) and 1M (ratings.dat, movies.dat), unpacked or in the zip they come in."""

from pathlib import Path
from typing import TYPE_CHECKING

from recalign.data.sources import files, reading
from recalign.params.load import Params

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

TERMS = (
    "MovieLens (F. M. Harper and J. A. Konstan, The MovieLens Datasets, ACM TiiS 5(4), 2015): for research; name it "
    "in publications, do not redistribute it, no commercial use without GroupLens' permission (see its README)."
)
NOUN, MIN_RATING = "movies", 4.0
GENRES_100K = (  # in the order of u.item's flags; the first flag means that no genre is known
    "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "Film-Noir",
    "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
ARTICLES = "The|A|An|La|Le|Les|L'|El|Los|Las|Il|Lo|Gli|Der|Die|Das|Det|Den|Un|Une|Una"


def read_100k(connection: "DuckDBPyConnection", raw: Path, spill: Path, params: Params) -> reading.SourceFacts:
    """u.data (tabs) and u.item ("|", Latin-1, 19 genre flags)."""
    fetch = _how_to_get(raw, "ml-100k")
    flags = [f"flag_{place}" for place in range(len(GENRES_100K) + 1)]
    ratings, movies = files.find(raw, "u.data", spill, fetch), files.find(raw, "u.item", spill, fetch)
    digests = {
        ratings.name: _read(connection, "interactions", ratings, ["user", "item", "rating", "time"], "\t"),
        movies.name: _read(connection, "items", movies, ["item", "title", "released", "video", "url", *flags], "|"),
    }
    chosen = ", ".join(
        f"case when {flag} = '1' then {reading.literal(genre)} end"
        for flag, genre in zip(flags[1:], GENRES_100K, strict=True)
    )
    return _facts(connection, f"array_to_string([{chosen}], '|')", digests)


def read_1m(connection: "DuckDBPyConnection", raw: Path, spill: Path, params: Params) -> reading.SourceFacts:
    """ratings.dat and movies.dat ("::", Latin-1; larger MovieLens sets in this layout read the same)."""
    fetch = _how_to_get(raw, "ml-1m")
    ratings, movies = files.find(raw, "ratings.dat", spill, fetch), files.find(raw, "movies.dat", spill, fetch)
    digests = {
        ratings.name: _read(connection, "interactions", ratings, ["user", "item", "rating", "time"], "::"),
        movies.name: _read(connection, "items", movies, ["item", "title", "genres"], "::"),
    }
    return _facts(connection, "genres", digests)


def _how_to_get(raw: Path, name: str) -> str:
    return (
        f"get it with 'mkdir -p {raw} && dvc import-url https://files.grouplens.org/datasets/movielens/{name}.zip "
        f"{raw}/{name}.zip', or copy your own: 'cp -r {name} {raw}'"
    )


def _read(connection: "DuckDBPyConnection", table: str, path: Path, columns: list[str], delimiter: str) -> str:
    raw = files.open_raw(connection, path, table)
    return files.read_text_table(connection, table, raw, columns, files.Layout(delimiter, False, "", "latin-1"))


def _facts(connection: "DuckDBPyConnection", genres: str, digests: dict[str, str]) -> reading.SourceFacts:
    reading.type_rows(
        connection, "interactions", "events_read",
        {
            "user": reading.integer_id("user"), "item": reading.integer_id("item"), "rating": reading.number("rating"),
            "timestamp": reading.epoch("time"), "position": "null::bigint",
        },
    )  # fmt: skip
    described = {"genre": genres, "year": r"regexp_extract(title, '\((\d{4})\)(\s*\(V\))?\s*$', 1)"}
    reading.type_rows(
        connection, "items", "items_read",
        {
            "item": reading.integer_id("item"), "title": _readable_title("title"),
            "attributes": reading.attributes(described), "available_from": "null",
        },
    )  # fmt: skip
    return reading.SourceFacts(NOUN, True, MIN_RATING, TERMS, digests)


def _readable_title(title: str) -> str:
    """SQL: "Usual Suspects, The (1995)" as "The Usual Suspects"; alternative titles in brackets are fixed alike."""
    articles = ARTICLES.replace("'", "''")
    undated = rf"trim(regexp_replace({title}, '\s*\(\d{{4}}\)(\s*\(V\))?\s*$', ''))"
    moved = rf"regexp_replace({undated}, '^([^(]*), ({articles})( \(.*)?$', '\2 \1\3')"
    bracketed = rf"regexp_replace({moved}, '\(([^()]*), ({articles})\)', '(\2 \1)', 'g')"
    return rf"regexp_replace({bracketed}, '(^|\()L'' ', '\1L''', 'g')"
