import pytest
from allennlp.common.checks import ConfigurationError

from transformer_elmo.nn.long_texts import Segment, segments


@pytest.mark.parametrize("size", [4, 5, 8, 16, 64])
def test_kept_parts_are_the_text(size):
    for length in range(200):
        found = segments(length, size)
        kept = [i for s in found for i in range(s.keep_begin, s.keep_end)]
        assert kept == list(range(length))
        for s in found:
            assert s.begin <= s.keep_begin <= s.keep_end <= s.end <= length
            assert s.end - s.begin == min(size, length)
            context = max(1, size // 8)
            assert s.begin == 0 or s.keep_begin - s.begin >= context
            assert s.end == length or s.end - s.keep_end == context


def test_short_texts_are_whole():
    assert segments(0, 4) == [Segment(0, 0, 0, 0)]
    assert segments(9, 9) == [Segment(0, 9, 0, 9)]
    with pytest.raises(ConfigurationError, match="at least 4"):
        segments(9, 3)
