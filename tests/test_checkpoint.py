"""Files that are there whole or not at all, come back as they were, and say so when damaged."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldvae.checkpoint import (
    FORMAT_VERSION,
    CheckpointError,
    load_model,
    load_tree,
    read_json,
    save_model,
    save_tree,
    write_atomically,
    write_json,
    write_record,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
tensors = st.tuples(
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 99),
).map(
    lambda t: torch.randint(0, 2 if t[0] == torch.bool else 99, t[1], generator=torch.Generator().manual_seed(t[2])).to(
        t[0]
    )
)
values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
trees = st.recursive(
    values | tensors,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(texts | st.integers(), children, max_size=4),
    max_leaves=12,
)


def assert_same(one: Any, two: Any) -> None:
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype
        assert one.shape == two.shape
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert list(one) == list(two)
        assert [type(key) for key in one] == [type(key) for key in two]
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    else:
        assert one == two


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


@given(tree=trees)
def test_a_tree_comes_back_as_it_was(tmp_path: Path, tree: Any) -> None:
    save_tree(tmp_path / "tree", tree)
    assert_same(load_tree(tmp_path / "tree"), tree)


def test_keys_that_look_alike_keep_their_own_tensors(tmp_path: Path) -> None:
    tree = {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}, 1: torch.full((1,), 2), "1": torch.full((1,), 3)}
    save_tree(tmp_path / "tree", tree)
    assert_same(load_tree(tmp_path / "tree"), tree)


def test_an_optimisers_and_a_generators_state_go_on_where_they_were(tmp_path: Path) -> None:
    def step(model: torch.nn.Module, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
        optimiser.zero_grad()
        model(torch.randn(8, 3, generator=generator)).square().sum().backward()
        optimiser.step()

    unbroken, random = small_model(), torch.Generator().manual_seed(0)
    adam = torch.optim.AdamW(unbroken.parameters(), lr=0.1)
    step(unbroken, adam, random)
    save_tree(
        tmp_path / "state",
        {"model": unbroken.state_dict(), "optimiser": adam.state_dict(), "generator": random.get_state()},
    )
    step(unbroken, adam, random)

    state = load_tree(tmp_path / "state")
    resumed, random_2 = small_model(), torch.Generator()
    adam_2 = torch.optim.AdamW(resumed.parameters(), lr=0.1)
    resumed.load_state_dict(state["model"])
    adam_2.load_state_dict(state["optimiser"])
    random_2.set_state(state["generator"])
    step(resumed, adam_2, random_2)
    assert_same(dict(resumed.state_dict()), dict(unbroken.state_dict()))


def test_views_that_share_memory_are_saved_as_what_they_show(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tree = {"base": base, "column": base[:, 1], "turned": base.T}
    save_tree(tmp_path / "tree", tree)
    base.zero_()
    loaded = load_tree(tmp_path / "tree")
    assert loaded["column"].tolist() == [1, 5, 9]
    assert loaded["turned"].tolist() == torch.arange(12.0).reshape(3, 4).T.tolist()


def test_a_missing_state_file_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing-here"):
        load_tree(tmp_path / "nothing-here")


json_values = st.recursive(values, lambda c: st.lists(c, max_size=3) | st.dictionaries(texts, c, max_size=3))


@given(value=st.dictionaries(texts.filter(lambda key: key != "checksum"), json_values, max_size=4))
def test_json_comes_back_as_it_was(tmp_path: Path, value: dict[str, Any]) -> None:
    write_json(tmp_path / "v.json", value)
    assert_same(read_json(tmp_path / "v.json"), value)


@pytest.mark.parametrize(
    "text", ["[", "[]", "7", '{"a": 1}', '{"a": 1, "checksum": "0"}', "[" * 100_000, '{"a":' * 100_000]
)
def test_anything_but_what_was_written_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        read_json(path)


def test_texts_with_brackets_and_spaces_keep_them(tmp_path: Path) -> None:
    value = {"crop [0,   2]": "[ 1   2 ]", "numbers": [[1, 2], [3.5, None]], "mixed": [1, "[  ]"]}
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == value


def test_what_was_read_can_be_changed_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    write_json(path, {"a": 1})
    write_json(path, {**json.loads(path.read_text()), "b": 2})  # with the old checksum in it
    assert read_json(path) == {"a": 1, "b": 2}


def test_a_record_for_people_is_plain_json(tmp_path: Path) -> None:
    write_record(tmp_path / "v.json", [{"a": 1}, {"b": [1, 2]}])
    assert json.loads((tmp_path / "v.json").read_text()) == [{"a": 1}, {"b": [1, 2]}]


def test_a_model_comes_back_with_its_config(tmp_path: Path) -> None:
    model = small_model()
    save_model(tmp_path / "run" / "best", "codec", model, {"width": 3, "beta": math.inf})
    tensors, config = load_model(tmp_path / "run" / "best", "codec")
    for name, tensor in model.state_dict().items():
        assert_same(tensors.pop(name), tensor)
    assert not tensors
    assert config["width"] == 3
    assert config["beta"] == math.inf


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, "codec", small_model(), {})
    with pytest.raises(CheckpointError, match=r"not of kind controller but: codec"):
        load_model(tmp_path, "controller")


def test_a_newer_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    save_model(tmp_path, "codec", small_model(), {"format_version": FORMAT_VERSION + 1})
    with pytest.raises(CheckpointError, match="upgrade"):
        load_model(tmp_path, "codec")


def test_a_missing_file_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no codec in .*model\.safetensors"):
        load_model(tmp_path, "codec")


def test_a_model_killed_between_its_two_files_is_whole(tmp_path: Path) -> None:
    save_model(tmp_path, "codec", small_model(), {"z": 2, "training": {"loss": 1.0}})
    (tmp_path / "config.json").unlink()
    tensors, header = load_model(tmp_path, "codec")
    assert header["z"] == 2
    assert_same(dict(sorted(tensors.items())), dict(sorted(small_model().state_dict().items())))


def test_a_slower_training_to_the_same_weights_gives_the_same_model(tmp_path: Path) -> None:
    for seconds in (1, 2):
        save_model(tmp_path / str(seconds), "codec", small_model(), {"training": {"seconds": seconds}})
    assert (tmp_path / "1/model.safetensors").read_bytes() == (tmp_path / "2/model.safetensors").read_bytes()


def test_the_same_model_is_saved_as_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_model(tmp_path / name, "codec", small_model(), {"z": 2})
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    write_atomically(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=f"cannot write {path}: Input/output error"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state"]


@pytest.mark.parametrize("below", ["nowhere", "a-file"])
def test_a_folder_that_is_not_there_is_told_in_a_sentence(tmp_path: Path, below: str) -> None:
    (tmp_path / "a-file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        write_json(tmp_path / below / "config.json", {})
