"""What was used last, kept while there is room."""

from minris.recent import Recent, cached


def test_what_was_kept_longest_ago_goes_first():
    kept = Recent(3)
    for number in range(5):
        kept[number] = str(number)
    assert kept == {2: "2", 3: "3", 4: "4"}


def test_what_is_kept_again_stays():
    kept = Recent(2)
    for key in "abac":
        kept[key] = key
    assert list(kept) == ["a", "c"]


def test_the_sum_of_sizes_is_bounded():
    kept = Recent(100)
    for number in range(50):
        kept.keep(number % 7, number, 10 + number)
        assert kept.size == sum(kept.sizes.values()) <= 100
    assert kept.keys() == kept.sizes.keys()
    assert kept[49 % 7] == 49


def test_what_is_larger_than_all_is_not_kept():
    kept = Recent(10)
    kept["small"] = 1
    kept.keep("large", 2, 11)
    assert kept == kept.sizes == {}


def test_a_copy_is_a_plain_dictionary_of_its_own():
    kept = Recent(1)
    kept["a"] = 1
    copy = kept.copy()
    kept["b"] = 2
    assert (copy, type(copy)) == ({"a": 1}, dict)


def test_results_are_kept_for_short_arguments_alone():
    calls = []

    @cached(2, longest=10)
    def joined(words, end=b""):
        calls.append(words)
        return "".join(words) + end.decode()

    long = ("x" * 11,)
    answers = [joined(words) for words in (("a", "b"), ("a", "b"), long, long)]
    assert answers == ["ab", "ab", long[0], long[0]]
    assert calls == [("a", "b"), long, long]
    assert [joined(("a",), bytes(10)), joined(("a",), bytes(10))] == ["a" + "\0" * 10] * 2
    assert calls[3:] == [("a",), ("a",)]
