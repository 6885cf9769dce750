"""Chat passes when every event is handled twice and in any order: questions too, so attempts overtake each other."""

from pathlib import Path

import pytest

from tests.flows.conftest import Backend
from tests.flows.test_shuffled import Shuffled
from tests.plugins.test_chat_flow import (  # noqa: F401 - they are collected here too
    test_who_asks_first_and_reads_then_is_answered_too,
)
from tests.plugins.test_chat_rides import (  # noqa: F401
    test_the_two_of_a_ride_write_to_each_other_until_half_an_hour_after_it,
    test_what_the_desk_does_not_know_goes_to_a_person_who_answers_in_the_same_session,
)


@pytest.fixture(scope="module")
def backend(runner: object, tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Backend:
    return Shuffled(tmp_path_factory.mktemp("shuffled"), sqlite_template, 1, None)
