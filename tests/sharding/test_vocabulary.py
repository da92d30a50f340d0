"""Vocabulary: rows are stable, row 0 is nothing, extension keeps what was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.errors import ConfigError
from sharding.vocabulary import Vocabulary

names = st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=20)


@given(names)
def test_rows_are_one_to_n_in_order_and_never_zero(ids):
    vocabulary = Vocabulary(tuple(ids))
    assert vocabulary.rows(ids).tolist() == list(range(1, len(ids) + 1))
    assert len(vocabulary) == len(ids) + 1


@given(names, st.lists(st.text(min_size=1, max_size=5), max_size=20))
def test_extending_keeps_old_rows_and_holds_every_new_name_once(old, new):
    before = Vocabulary(tuple(old))
    after = before.extended(new)
    assert after.rows(old).tolist() == before.rows(old).tolist()
    assert set(after.ids) == set(old) | set(new)
    assert after.extended(new) == after
    assert all(name in after for name in new)


def test_a_stranger_and_a_namesake_are_refused_in_one_line():
    with pytest.raises(ConfigError, match="'c' is not among its 2 names"):
        Vocabulary(("a", "b")).rows(["a", "c"])
    with pytest.raises(ConfigError, match="occurs twice"):
        Vocabulary(("a", "a"))
