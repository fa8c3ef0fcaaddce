"""The modality adapter and the splice: shapes, scale, gradients, files, and what is refused."""

from dataclasses import replace

import pytest
import tiny
import torch

from recalign.common.errors import RecalignError
from recalign.hybrid.modality import (
    WEIGHTS,
    ModalityAdapter,
    Origin,
    embedding_std,
    load_modality,
    modality_digest,
    save_modality,
    splice,
)

ORIGIN = Origin("sasrec", "a" * 64, "b" * 64, "c" * 64)


def vectors(count: int, width: int = 8, scale: float = 1.0) -> torch.Tensor:
    """Random rows, the same at each call."""
    return scale * torch.randn(count, width, generator=torch.Generator().manual_seed(3))


def test_one_token_an_object():
    """[N, in_dim] to [N, llm_dim]."""
    assert ModalityAdapter(8, 16)(vectors(5)).shape == (5, 16)
    assert ModalityAdapter(8, 16)(vectors(5)[:, None]).shape == (5, 1, 16)


def test_several_tokens_an_object():
    """One vector becomes all tokens; of several vectors each becomes its own."""
    adapter = ModalityAdapter(8, 16, tokens=3)
    from_one = adapter(vectors(5))
    assert from_one.shape == (5, 3, 16)
    from_each = adapter(vectors(5)[:, None].expand(5, 3, 8))
    torch.testing.assert_close(from_each, from_one)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_outputs_have_the_scale_of_the_embedding_table_whatever_the_inputs_have(scale):
    model = tiny.model()
    std = embedding_std(model)
    outputs = ModalityAdapter(64, 32, std=std)(vectors(400, 64, scale))
    assert float(outputs.detach().std()) == pytest.approx(std, rel=0.1)


def test_the_same_seed_gives_the_same_adapter_and_leaves_torch_alone():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one, other = ModalityAdapter(8, 16, seed=4), ModalityAdapter(8, 16, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.out.weight, other.out.weight)
    assert not torch.equal(one.out.weight, ModalityAdapter(8, 16, seed=5).out.weight)


def test_splice_replaces_exactly_the_placeholders_in_order():
    embeddings = torch.arange(2 * 3 * 2, dtype=torch.float32).reshape(2, 3, 2)
    ids = torch.tensor([[7, 5, 7], [1, 2, 7]])
    given = torch.tensor([[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]])
    spliced = splice(embeddings, ids, 7, given)
    assert spliced.tolist() == [[[-1, -2], [2, 3], [-3, -4]], [[6, 7], [8, 9], [-5, -6]]]
    assert embeddings[0, 0].tolist() == [0, 1]


def test_gradients_reach_the_vectors_and_the_rest_of_the_embeddings():
    embeddings, given = torch.zeros(1, 3, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    splice(embeddings, torch.tensor([[4, 9, 4]]), 9, given).sum().backward()
    assert given.grad.tolist() == [[1, 1]]
    assert embeddings.grad.tolist() == [[[1, 1], [0, 0], [1, 1]]]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_counts_that_differ_are_named(count):
    with pytest.raises(RecalignError, match=rf"2 placeholders \(id 9\) for {count} vectors"):
        splice(torch.zeros(1, 3, 2), torch.tensor([[9, 4, 9]]), 9, torch.zeros(count, 2))


def test_widths_that_differ_are_named():
    with pytest.raises(RecalignError, match="vectors of width 5 do not fit embeddings of width 2"):
        splice(torch.zeros(1, 1, 2), torch.tensor([[9]]), 9, torch.zeros(1, 5))


@pytest.mark.parametrize("shape", [(4, 7), (4, 2, 8), (4,)])
def test_vectors_of_another_shape_are_refused(shape):
    with pytest.raises(RecalignError, match=r"modality adapter for \[N, 8\]"):
        ModalityAdapter(8, 16)(torch.zeros(shape))


@pytest.mark.parametrize("wrong", [{"in_dim": 0}, {"tokens": 0}, {"std": 0.0}, {"std": float("nan")}])
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(RecalignError, match=f"has {next(iter(wrong))}"):
        ModalityAdapter(**{"in_dim": 8, "llm_dim": 16, **wrong})


def test_a_saved_adapter_is_read_back_whole_though_nothing_trains(tmp_path):
    """Saved by name: after a text-only batch no parameter may have a gradient, or ask for one."""
    adapter = ModalityAdapter(8, 16, tokens=2).requires_grad_(False)
    save_modality(adapter, ORIGIN, tmp_path)
    loaded = load_modality(tmp_path, ORIGIN)
    assert torch.equal(loaded(vectors(5)), adapter(vectors(5)))
    digest = modality_digest(tmp_path)
    save_modality(adapter, ORIGIN, tmp_path)
    assert modality_digest(tmp_path) == digest
    save_modality(adapter, replace(ORIGIN, order_digest="d" * 64), tmp_path)
    assert modality_digest(tmp_path) != digest


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"teacher": "gru4rec"}, "vectors of 'sasrec', not of 'gru4rec'"),
        ({"teacher_digest": "d" * 64}, "another fit of 'sasrec'"),
        ({"order_digest": "d" * 64}, "another catalogue, or items in another order"),
        ({"lora_digest": "d" * 64}, "another run's LoRA adapter"),
        ({"lora_digest": None}, "another run's LoRA adapter"),
    ],
)
def test_an_adapter_of_something_else_is_refused(tmp_path, changed, told):
    save_modality(ModalityAdapter(8, 16), ORIGIN, tmp_path)
    with pytest.raises(RecalignError, match=told):
        load_modality(tmp_path, replace(ORIGIN, **changed))


def test_a_missing_or_damaged_file_is_one_line(tmp_path):
    with pytest.raises(RecalignError, match=r"holds no modality\.safetensors"):
        load_modality(tmp_path, ORIGIN)
    save_modality(ModalityAdapter(8, 16), ORIGIN, tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:200])
    with pytest.raises(RecalignError, match="is no whole modality adapter"):
        load_modality(tmp_path, ORIGIN)


def test_values_that_are_not_finite_are_not_saved(tmp_path):
    adapter = ModalityAdapter(8, 16)
    with torch.no_grad():
        adapter.out.weight[0, 0] = float("nan")
    with pytest.raises(RecalignError, match="not finite"):
        save_modality(adapter, ORIGIN, tmp_path)
