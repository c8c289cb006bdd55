"""Among devices that want the same piece exactly one fetches it, whoever they are."""

from hypothesis import given
from hypothesis import strategies as st

from shoal.agent.peers.policy import Decision, PieceStatus, decide, ranked

NAMES = st.lists(st.from_regex(r"[a-z]{1,5}", fullmatch=True), min_size=1, max_size=9, unique=True)


@given(NAMES, st.text(max_size=8), st.sampled_from([PieceStatus.WANTED, PieceStatus.CLAIMED]))
def test_of_all_that_want_a_piece_one_fetches_it(
    names: list[str], sha256: str, status: PieceStatus
) -> None:
    order = ranked(sha256, names)
    decisions = [
        decide(me, order, {other: status for other in names if other != me}) for me in names
    ]
    assert decisions.count(Decision.FETCH) == 1


@given(NAMES, st.text(max_size=8))
def test_every_device_ranks_alike(names: list[str], sha256: str) -> None:
    assert ranked(sha256, names) == ranked(sha256, reversed(names))


@given(NAMES, st.text(max_size=8), st.data())
def test_when_devices_fail_one_of_the_others_fetches(
    names: list[str], sha256: str, data: st.DataObject
) -> None:
    order = ranked(sha256, names)
    left = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    decisions = [decide(me, order, {o: PieceStatus.WANTED for o in left if o != me}) for me in left]
    assert decisions.count(Decision.FETCH) == 1


@given(NAMES, st.text(max_size=8))
def test_no_device_fetches_what_is_being_fetched(names: list[str], sha256: str) -> None:
    order = ranked(sha256, [*names, "someone-else"])
    for me in names:
        assert decide(me, order, {"someone-else": PieceStatus.FETCHING}) is Decision.WAIT
