from densesiam_d2.labels.subset import evenly_spaced


def test_evenly_spaced():
    assert evenly_spaced("abcdefg", 3) == ["a", "d", "g"] and evenly_spaced("abcdefg", 1) == ["a"]
    for number in (7, 12, None):
        assert evenly_spaced("abcdefg", number) == list("abcdefg")
    assert evenly_spaced([], 5) == evenly_spaced([], None) == []
    assert len(set(evenly_spaced(range(1000), 999))) == 999
