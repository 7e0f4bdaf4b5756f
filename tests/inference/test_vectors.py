import pytest

from transformer_elmo.inference.vectors import jobs_of, segments


@pytest.mark.parametrize("size", [4, 5, 8, 16, 64])
def test_kept_parts_are_the_text(size):
    for length in range(200):
        found = segments(length, size)
        assert len(found) == 1 or length > size
        kept = [i for s in found for i in range(s.keep_begin, s.keep_end)]
        assert kept == list(range(length))
        for s in found:
            assert s.begin <= s.keep_begin <= s.keep_end <= s.end <= length
            assert s.end - s.begin == min(size, length)
            context = max(1, size // 8)
            assert s.begin == 0 or s.keep_begin - s.begin >= context
            assert s.end == length or s.end - s.keep_end == context


@pytest.mark.parametrize("start", [[], ["<S>"], ["<1>", "<2>"]])
@pytest.mark.parametrize("end", [[], ["</S>"], ["</1>", "</2>", "</3>"]])
@pytest.mark.parametrize("segment_length", [None, 4, 5, 9, 16])
def test_jobs(start, end, segment_length):
    # Every length, those that just fit and those that just don't among them.
    sentences = [[f"{length}.{number}" for number in range(length)] for length in range(40)]
    jobs = list(jobs_of(sentences, start, end, segment_length))
    # What they keep, sentence by sentence, are the words.
    kept, found = [], []
    for job in jobs:
        kept += job.tokens[job.keep]
        assert 0 <= job.keep.start <= job.keep.stop <= len(job.tokens)
        if job.ends_sentence:
            found.append(kept)
            kept = []
    assert not kept and found == sentences
    for number, sentence in enumerate(sentences):
        tokens = [*start, *sentence, *end] if sentence else []
        parts = [job.tokens for job in jobs if job.sentence == number]
        cut = segments(len(tokens), segment_length or max(4, len(tokens)))
        assert parts == [tokens[segment.begin : segment.end] for segment in cut]
