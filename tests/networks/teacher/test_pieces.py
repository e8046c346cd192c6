import pytest
from tokenizers import pre_tokenizers, processors
from transformers import PreTrainedTokenizer

from vivid_monai.errors import VividError
from vivid_monai.networks.teacher.text import Piece, published_pieces, read_answers, slot_pieces, tokenize
from vivid_monai.ums.states import STATES

FINDINGS = {"Edema": "present", "Support Devices": None, "Pleural Effusion": "uncertain"}


def spans(tokenizer, tokens):
    """Character spans of tokens, from what each adds to the decoded text: no use of the tokenizer's offsets."""
    ends = [len(tokenizer.decode([token.id for token in tokens[: n + 1]])) for n in range(len(tokens))]
    return list(zip([0, *ends], ends, strict=False))


@pytest.mark.parametrize("name", ["tokenizer", "merging_tokenizer"])
def test_each_token_knows_the_pieces_it_touches(name, request):
    tokenizer = request.getfixturevalue(name)
    pieces = published_pieces(FINDINGS)
    tokens = tokenize(tokenizer, pieces)
    text = "".join(piece.text for piece in pieces)
    assert tokenizer.decode([token.id for token in tokens]) == text
    owner = [index for index, piece in enumerate(pieces) for _ in piece.text]
    for token, (start, end) in zip(tokens, spans(tokenizer, tokens), strict=True):
        assert token.touches == tuple(pieces[index] for index in sorted(set(owner[start:end])))
    assert next(tokenizer.decode([t.id]) for t in tokens if t.is_state).startswith("present")


def test_the_merging_tokenizer_does_merge_across_pieces(merging_tokenizer):
    tokens = tokenize(merging_tokenizer, published_pieces(FINDINGS))
    fields = [{piece.field for piece in token.touches} for token in tokens]
    assert {None, "Support Devices"} in fields  # a separator with the entry after it
    assert any(token.is_state and len(token.touches) > 1 for token in tokens)  # `null` with what stands around it


def test_a_tokenizer_that_leaves_spaces_out_of_its_offsets(tokenizer):
    before, after = pieces = [Piece("\nEdema: ", "Edema"), Piece("present", "Edema", True)]
    backend = tokenizer.backend_tokenizer
    processor = backend.post_processor
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    try:
        tokens = tokenize(tokenizer, pieces)
        assert backend.encode("\nEdema: present").offsets[-1] == (8, 15)
    finally:
        backend.post_processor = processor
    assert [token.touches for token in tokens] == [(before,)] * (len(tokens) - 1) + [(before, after)]


def test_several_tokens_of_one_character_all_touch_its_piece(tokenizer):
    tokens = tokenize(tokenizer, [Piece("a"), Piece("é", "Edema"), Piece("b")])
    assert [token.touches[0].text for token in tokens] == ["a", "é", "é", "b"]
    assert all(len(token.touches) == 1 for token in tokens)


def test_answers_are_read_in_context(tokenizer):
    answers = read_answers(tokenizer, {state: slot_pieces("Edema", state) for state in STATES})
    for state, word in zip(STATES, answers.words, strict=True):
        assert (*answers.prefix, *word) == tuple(tokenizer(f"\nEdema: {state}").input_ids)
    assert len({word[0] for word in answers.words}) == 3


def test_states_that_begin_alike_are_refused_by_the_name_of_the_tokenizer(merging_tokenizer, tokenizer):
    versions = {state: [Piece("Edema: "), Piece(f"it is {state}", "Edema", True)] for state in STATES}
    with pytest.raises(VividError, match="does not tell the states apart"):
        read_answers(tokenizer, versions)
    merging_tokenizer.name_or_path = "merging"
    with pytest.raises(VividError, match="'merging' does not tell"):  # the state merges with what stands before it
        read_answers(merging_tokenizer, {state: slot_pieces("Edema", state) for state in STATES})


def test_a_tokenizer_without_offsets_is_refused():
    class Slow(PreTrainedTokenizer):
        vocab_size = 1

        def get_vocab(self):
            return {"a": 0}

        def _convert_token_to_id(self, token):
            return 0

    with pytest.raises(VividError, match="no character offsets"):
        tokenize(Slow(), [Piece("a")])


def test_the_pre_tokenizer_of_the_merging_tokenizer_splits_nothing(merging_tokenizer):
    text = 'a "b": {\n'
    assert len(merging_tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)) == 1
    assert len(pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)) > 1
