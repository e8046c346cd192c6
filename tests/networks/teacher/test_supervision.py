"""Which tokens carry loss, piece by piece; the sums must be those of a plain transformers forward over just those."""

import pytest
import torch
from transformers import AutoTokenizer

from tests.tolerance import close
from vivid_monai.networks.language import LanguageModel
from vivid_monai.networks.teacher import PublishedTeacher, SlotTeacher
from vivid_monai.networks.teacher.text import PROMPT, schema_text
from vivid_monai.ums.states import NULL, encode

pytestmark = pytest.mark.numeric
CLOSE = close(depth=2, scale=10)

FIELDS = ("Edema", "Lung Lesion", "Pneumothorax", "Fracture")
# Per image: tokens of the text as Qwen2's BPE cuts them, led by the field whose loss they carry: E, L, P, F; S for the
# structure of the JSON; - for none. · is a space, ¶ a line end.
HEAD = ["-|Find|ings|·in|·this|·image|·as|·JSON|:¶", 'S|{¶|·|·"|find|ings|":|·{¶']
NO_LOSS = ["-|Find|ings|·in|·this|·image|·as|·JSON|:¶", '-|{¶|·|·"|find|ings|":|·{¶']
STATE = '|":|·{¶|·····|·"|state|":'
MIXED = [
    *HEAD,
    f'E|···|·"|Ed|ema{STATE}|·"|present|"¶|···|·}},¶',
    f'-|···|·"|L|ung|·Les|ion{STATE}|·null|¶|···|·}},¶',
    f'F|···|·"|Fr|act|ure{STATE}|·"|abs|ent|"¶|···|·}}¶',
    "S|·|·}¶|}|<|endoftext|>",
]
ENDS_IN_NULL = [
    *HEAD,
    f'P|···|·"|P|ne|um|oth|or|ax{STATE}|·"|unc|ertain|"¶|···|·}},¶',
    f'-|···|·"|Fr|act|ure{STATE}|·null|¶|···|·}}¶',
    "S|·|·}¶|}|<|endoftext|>",
]
ONLY_NULL = [*NO_LOSS, f'-|···|·"|L|ung|·Les|ion{STATE}|·null|¶|···|·}}¶', "-|·|·}¶|}|<|endoftext|>"]
RECORDS = [  # states, asked fields, tokens
    (("present", None, "uncertain", "absent"), "ELF", MIXED),
    (("absent", "present", "uncertain", None), "PF", ENDS_IN_NULL),
    (("absent", None, "uncertain", None), "L", ONLY_NULL),
]


@pytest.fixture(scope="module")
def qwen(real_data, build_lm) -> LanguageModel:
    tokenizer = AutoTokenizer.from_pretrained(real_data / "qwen2_tokenizer", eos_token="<|endoftext|>")
    return build_lm(tokenizer, num_hidden_layers=1)


def batch(rows):
    states = torch.tensor([[encode(state) for state in RECORDS[row][0]] for row in rows])
    asked = torch.tensor([[field[0] in RECORDS[row][1] for field in FIELDS] for row in rows])
    return states, asked


def read(lines):
    """The marked lines as text tokens and the column of each (None: no loss)."""
    columns = {field[0]: number for number, field in enumerate(FIELDS)} | {"S": len(FIELDS), "-": None}
    tokens = []
    for line in lines:
        mark, rest = line[0], line[2:].replace("·", " ").replace("¶", "\n")
        end = ["<|endoftext|>"] if rest.endswith("<|endoftext|>") else []
        words = rest.removesuffix("|<|endoftext|>").split("|") + end
        tokens += [(word, columns[mark]) for word in words]
    return tokens


@pytest.mark.real_data
@pytest.mark.parametrize("rows", [[0], [1], [2], [0, 1, 2]])
def test_published_with_the_bpe_of_qwen2(qwen, embeddings, token_nll, rows):
    states, asked = batch(rows)
    teacher = PublishedTeacher(qwen, FIELDS)
    output = teacher(embeddings[rows], states, asked)
    for number, row in enumerate(rows):
        words, columns = zip(*read(RECORDS[row][2]), strict=True)
        text = "".join(words)
        assert text.startswith(PROMPT)
        ids = qwen.tokenizer(text).input_ids
        assert [qwen.tokenizer.decode([i]) for i in ids] == list(words)
        nll = token_nll(qwen, embeddings[row], ids)
        for column in range(len(FIELDS) + 1):
            own = [at for at, value in enumerate(columns) if value == column]
            assert output.count[number, column] == len(own)
            torch.testing.assert_close(output.nll[number, column], nll[own].sum(), **CLOSE)
    assert teacher.count(states, asked).tolist() == output.count.sum(1).tolist()


SLOTS = {  # per field and state: the tokens of a slot, those after ! carry loss
    ("Edema", "present"): "¶|Ed|ema|:!·present",
    ("Fracture", "absent"): "¶|Fr|act|ure|:!·absent",
    ("Pneumothorax", "uncertain"): "¶|P|ne|um|oth|or|ax|:!·uncertain",
}


@pytest.mark.real_data
@pytest.mark.parametrize("rows", [[0], [1], [2], [0, 1, 2]])
def test_slots_with_the_bpe_of_qwen2(qwen, embeddings, token_nll, rows):
    states, asked = batch(rows)
    teacher = SlotTeacher(qwen, FIELDS)
    output = teacher(embeddings[rows], states, asked)
    schema = qwen.tokenizer(schema_text(FIELDS)).input_ids
    for number, row in enumerate(rows):
        for column, (field, state) in enumerate(zip(FIELDS, RECORDS[row][0], strict=True)):
            if state is None or field[0] not in RECORDS[row][1]:
                assert output.count[number, column] == output.nll[number, column] == 0
                continue
            silent, scored = (
                part.replace("·", " ").replace("¶", "\n").split("|") for part in SLOTS[field, state].split("!")
            )
            ids = qwen.tokenizer(f"\n{field}: {state}").input_ids
            assert [qwen.tokenizer.decode([i]) for i in ids] == [*silent, *scored]
            nll = token_nll(qwen, embeddings[row], ids, schema)
            assert output.count[number, column] == len(scored)
            torch.testing.assert_close(output.nll[number, column], nll[-len(scored) :].sum(), **CLOSE)
    assert teacher.count(states, asked).tolist() == output.count.sum(1).tolist()


@pytest.mark.parametrize("name", ["tokenizer", "merging_tokenizer"])
def test_published_with_any_bpe(name, request, build_lm, embeddings, token_nll):
    """The same, with the expectation computed from the characters of the text instead of written down."""
    lm = build_lm(request.getfixturevalue(name))
    states, asked = batch([0, 1, 2])
    output = PublishedTeacher(lm, FIELDS)(embeddings, states, asked)
    for row, (values, wanted, lines) in enumerate(RECORDS):
        text = "".join(word for word, _ in read(lines)).removesuffix("<|endoftext|>")
        owner = [-1] * len(PROMPT) + [len(FIELDS)] * (len(text) - len(PROMPT))
        for column, (field, state) in enumerate(zip(FIELDS, values, strict=True)):
            if field[0] in wanted:
                start = text.index(f'    "{field}"')
                end = text.index("\n    }", start) + len("\n    }")
                owner[start:end] = [-1 if state is None else column] * (end - start)
        ids = lm.tokenizer(text).input_ids
        nll = token_nll(lm, embeddings[row], [*ids, lm.eos])
        expected = torch.zeros(2, len(FIELDS) + 1)
        ends = [len(lm.tokenizer.decode(ids[: n + 1])) for n in range(len(ids))]
        touched = [set(owner[a:b]) for a, b in zip([0, *ends], ends, strict=False)] + [{len(FIELDS)}]
        answerable = any(owner.count(column) for column in range(len(FIELDS)))
        for at, columns in enumerate(touched):
            if -1 not in columns and answerable:
                expected[:, min(columns)] += torch.stack([nll[at], torch.tensor(1.0)])
        torch.testing.assert_close(output.nll[row], expected[0], **CLOSE)
        assert output.count[row].tolist() == expected[1].tolist()


@pytest.mark.parametrize("layout", [PublishedTeacher, SlotTeacher])
def test_a_row_of_a_batch_is_what_it_is_alone(lm, layout, embeddings):
    states, asked = batch([0, 1, 2])
    alone = [layout(lm, FIELDS)(embeddings[row : row + 1], *batch([row])) for row in range(3)]
    together = layout(lm, FIELDS)(embeddings, states, asked)
    torch.testing.assert_close(together.nll, torch.cat([out.nll for out in alone]), **CLOSE)
    assert together.count.equal(torch.cat([out.count for out in alone]))


def test_null_is_the_code_of_the_records_here():
    assert batch([2])[0].tolist() == [[0, NULL, 2, NULL]]
