"""Titles as people type them, against the catalogue's."""

import pytest

from recalign.data.titles import Found, TitleSearch, plain

CATALOGUE = {
    1: "Alien (1979)",
    2: "Aliens (1986)",
    3: "Blade Runner (1982)",
    4: "Dracula (1931)",
    5: "Dracula (1992)",
    6: "Matrix, The (1999)",
    7: "Amélie (2001)",
    8: "Toy Story 2 (1999)",
    9: "Toy Story 3 (2010)",
    10: "Singin' in the Rain (1952)",
    11: "1984 (1984)",
    12: "千と千尋の神隠し (2001)",
    13: "??? (1999)",
}


@pytest.fixture(scope="module")
def search() -> TitleSearch:
    return TitleSearch(CATALOGUE)


@pytest.mark.parametrize(
    ("typed", "item"),
    [
        ("Alien (1979)", 1),
        ("ALIEN (1979)", 1),
        ("alien", 1),
        ("Alien (1980)", 1),  # one film of that name: a slip of memory
        ("aliens", 2),
        ("Blade Runer", 3),
        ("blade-runner", 3),
        ("Blad Runner (1982)", 3),
        ("dracula (1992)", 5),
        ("The Matrix", 6),
        ("amelie", 7),
        ("toy story 3", 9),
        ("Singin in the rain", 10),
        ("1984", 11),
        ("千と千尋の神隠し", 12),
        ("??? (1999)", 13),
    ],
)
def test_a_title_is_found_whatever_its_case_punctuation_year_or_slip(search, typed: str, item: int) -> None:
    assert search.find(typed) == Found(item)


def test_several_items_of_one_title_are_named_and_none_is_chosen(search) -> None:
    assert search.find("Dracula") == Found(None, (4, 5), tied=True)
    assert search.find("dracula (1958)") == Found(None, (4, 5), tied=True)


@pytest.mark.parametrize(("typed", "first"), [("Toy Story 4", 8), ("Blade", 3), ("Blade Running", 3)])
def test_what_is_not_clearly_one_title_gets_the_nearest_as_a_hint(search, typed: str, first: int) -> None:
    """A number is no slip: the fourth part is none of the others."""
    found = search.find(typed)
    assert found.item is None
    assert first in found.near
    assert len(found.near) <= 3
    assert not found.tied


@pytest.mark.parametrize("typed", ["", "   ", "?", "zzzzqqq", "x" * 1000])
def test_what_is_like_nothing_gets_no_hint(search, typed: str) -> None:
    assert search.find(typed) == Found(None)


def test_the_words_and_the_year_of_a_title() -> None:
    assert plain("Good, the Bad and the Ugly, The (1966)") == ("the good the bad and the ugly", "1966")
    assert plain("Blade Runner") == ("blade runner", "")
