from pathlib import Path
from typing import Any

import pytest

import configs
from configs import knobs

ROOT = Path(__file__).parents[1]
TRAIN = (ROOT / "trainer" / "train.py").read_text(encoding="utf-8")
LAPTOP = (ROOT / "configs" / "laptop.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", configs.names())
def test_every_profile_loads(name):
    profile = configs.load(name)
    assert profile.name == name
    assert profile.description


@pytest.mark.parametrize("name", configs.names())
def test_every_train_knob_exists_in_train_py_and_is_used(name):
    values = configs.load(name).train
    assert set(values) <= set(knobs.read(TRAIN)) - knobs.unused(TRAIN)
    written = knobs.read(knobs.write(TRAIN, values))
    assert {name: list(v) if isinstance(v := written[name], tuple) else v for name in values} == values


@pytest.mark.parametrize("name", configs.names())
def test_a_profile_trains_on_what_it_prepares_and_in_whole_passes(name):
    profile = configs.load(name)
    train: dict[str, Any] = dict(knobs.read(knobs.write(TRAIN, profile.train)))
    assert train["VOCAB_SIZE"] in profile.data.vocab_sizes
    assert train["MAX_SEQ_LEN"] == profile.data.sequence_length
    assert train["TOTAL_BATCH_SIZE"] % (train["DEVICE_BATCH_SIZE"] * train["MAX_SEQ_LEN"]) == 0
    assert train["DEPTH"] * train["ASPECT_RATIO"] >= train["HEAD_DIM"]


def test_the_shipped_profiles_are_those_of_the_design():
    assert configs.names() == ["consumer", "h100", "h200", "laptop", "mps", "rocm"]


@pytest.mark.parametrize("name", [name for name in configs.names() if name != "laptop"])
def test_what_was_not_run_says_so(name):
    assert "Not run yet" in configs.load(name).description


@pytest.mark.parametrize("name", ["h200", "rocm"])
def test_the_large_cards_train_the_same_recipe(name):
    assert configs.load(name).train == configs.load("h100").train


def test_the_laptop_trains_with_upstreams_recipe():
    recipe = {"ROPE_BASE": 10000.0, "SHORT_WINDOW_DIVISOR": 2, "QK_SCALE": 1.0, "INIT_SCALE": 1.0, "X0_LAMBDA_INIT": 0.1}
    decays = dict.fromkeys(("EMBEDDING_DECAY", "VALUE_EMBEDDING_DECAY", "UNEMBEDDING_DECAY"), 0.0)
    ours = knobs.read(knobs.write(TRAIN, configs.load("laptop").train))
    assert {name: ours[name] for name in recipe | decays} == recipe | decays


def test_train_py_carries_the_laptops_values():
    assert knobs.write(TRAIN, configs.load("laptop").train) == TRAIN


def test_names_are_the_shipped_profiles_without_the_search_space():
    assert "laptop" in configs.names()
    assert "search_space" not in configs.names()


@pytest.mark.parametrize("name", ["laptpo", "search_space", "", "nowhere.toml"])
def test_an_unknown_profile_names_those_that_exist(name):
    with pytest.raises(configs.ProfileError, match=r"unknown profile .*laptop"):
        configs.load(name)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("threads = 1", "thread = 1", r"thread: extra inputs are not permitted"),
        ("[budget]", "[budgets]", r"budgets: extra inputs"),
        ("[night]", "[night]\ntrails = 3", r"night\.trails: extra inputs"),
        ('device = "cpu"', 'device = "tpu"', r"device: input should be 'cpu', 'cuda' or 'mps'"),
        ("threads = 1", "threads = 0", r"threads: input should be greater than 0"),
        ('kind = "flops"', 'kind = "steps"', r"budget\.kind: input should be 'flops' or 'seconds'"),
        ("memory_gib = 4", "memory_gib = -1", r"limits\.memory_gib: input should be greater than 0"),
        ("vocab_sizes = [2048]", "vocab_sizes = [100000]", r"data\.vocab_sizes\.0: input should be less than"),
        ("train = [", "train = []\nx = [", r"data\.train: tuple should have at least 1 item"),
        ("sequence_length = 128", "", r"data\.sequence_length: field required"),
        ("DEPTH = 3", "DEPTH = {}", r"train\.DEPTH"),
        ("[data]", "[data", r"not valid TOML"),
    ],
)
def test_a_profile_that_cannot_be_used_says_which_file_and_key(tmp_path, old, new, named):
    assert old in LAPTOP
    path = tmp_path / "mine.toml"
    path.write_text(LAPTOP.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(configs.ProfileError, match=named) as caught:
        configs.load(str(path))
    assert "mine.toml" in str(caught.value)


def test_a_file_that_is_not_utf_8_is_no_profile(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"\xff")
    with pytest.raises(configs.ProfileError, match="not valid TOML"):
        configs.load(str(tmp_path / "mine.toml"))


def test_a_profile_of_ones_own_is_named_after_its_file(tmp_path):
    (tmp_path / "mine.toml").write_text(LAPTOP, encoding="utf-8")
    assert configs.load(str(tmp_path / "mine.toml")).name == "mine"


def test_a_profile_cannot_be_changed_after_it_was_read():
    with pytest.raises(ValueError, match="frozen"):
        configs.load("laptop").device = "cuda"


def extending(tmp_path, base, text=""):
    path = tmp_path / "mine.toml"
    path.write_text(f'extends = "{base}"\ndescription = "mine"\n{text}')
    return configs.load(str(path))


def test_a_profile_takes_what_it_does_not_say_from_the_one_it_extends(tmp_path):
    mine, h100 = extending(tmp_path, "h100", "[train]\nDEPTH = 4\n[budget]\namount = 60\n"), configs.load("h100")
    assert mine.train == {**h100.train, "DEPTH": 4}
    assert (mine.budget.kind, mine.budget.amount, mine.name) == ("seconds", 60, "mine")
    assert mine.data == h100.data


def test_an_extended_profile_may_extend_another(tmp_path):
    assert extending(tmp_path, "mps").data.license == configs.load("h100").data.license


def test_extending_what_is_no_profile_names_those_that_are(tmp_path):
    with pytest.raises(configs.ProfileError, match="extends = 'h1000': choose one of consumer, h100"):
        extending(tmp_path, "h1000")


@pytest.mark.parametrize("name", ["~nobody-of-this-name/mine.toml", "~mine.toml"])
def test_a_home_of_nobody_is_an_unknown_profile(name):
    with pytest.raises(configs.ProfileError, match="unknown profile"):
        configs.load(name)
