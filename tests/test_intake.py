"""What others send is bounded over all of them."""

from minris.intake import SMALL, Intake, Share

MIB = 1 << 20


def test_a_share_is_bounded_by_address_and_by_all():
    intake = Intake(8 * MIB)
    shares = []

    def take(address, size):
        shares.append(Share(intake, address))
        return shares[-1].take(size)

    assert take("192.0.2.1", 4 * MIB)
    assert not take("192.0.2.1", MIB)  # an address has half
    assert take("192.0.2.2", 2 * MIB)
    assert not take("192.0.2.3", MIB)  # a quarter is for what is small
    assert [take("192.0.2.1", SMALL) for _ in range(40)] == [True] * 32 + [False] * 8
    for share in shares:
        share.give_back()
    assert +intake.held == {}


def test_a_share_that_grows_is_large_from_its_whole_on():
    intake = Intake(4 * SMALL)
    with intake.share("192.0.2.1") as share:
        assert [share.take(SMALL // 2) for _ in range(5)] == [True] * 4 + [False]
        assert intake.held[""] == share.size == 2 * SMALL
    assert +intake.held == {}


def test_what_was_given_back_is_not_given_back_again():
    intake = Intake()
    one, other = Share(intake, "192.0.2.1"), Share(intake, "192.0.2.1")
    one.take(10)
    other.take(10)
    one.give_back()
    one.give_back()
    assert intake.held == {"192.0.2.1": 10, "": 10}
