import json
from pathlib import Path
from typing import Any

import pytest

import configs
from configs import knobs

ROOT = Path(__file__).parents[2]
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
    assert {
        name: list(v) if isinstance(v := written[name], tuple) else v for name in values
    } == values


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
def test_a_profile_that_was_not_run_says_so(name):
    assert "Not run yet" in configs.load(name).description


@pytest.mark.parametrize("name", ["h200", "rocm"])
def test_the_large_cards_train_the_same_recipe(name):
    assert configs.load(name).train == configs.load("h100").train


def test_the_laptop_trains_with_upstreams_recipe():
    recipe = {
        "ROPE_BASE": 10000.0,
        "SHORT_WINDOW_DIVISOR": 2,
        "QK_SCALE": 1.0,
        "INIT_SCALE": 1.0,
        "X0_LAMBDA_INIT": 0.1,
    }
    recipe |= dict.fromkeys(("EMBEDDING_DECAY", "VALUE_EMBEDDING_DECAY", "UNEMBEDDING_DECAY"), 0.0)
    recipe |= {"MUON_MOMENTUM_WARMUP": 300, "MUON_MOMENTUM_DROP": 0.0}
    recipe |= {"BIGRAM_TABLE": 0, "TRIGRAM_TABLE": 0, "DOCUMENT_MASK": False}
    ours = knobs.read(knobs.write(TRAIN, configs.load("laptop").train))
    assert {name: ours[name] for name in recipe} == recipe


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
        (
            "threads = 1",
            "thread = 1",
            "thread is not a setting; a profile has extends, description, device, threads, data",
        ),
        ("[budget]", "[budgets]", "budget is missing and has no default; budgets is not a setting"),
        (
            "[night]",
            "[night]\ntrails = 3",
            "night.trails is not a setting; [night] has trials, hours, proposer, patches, program",
        ),
        (
            "threads = 1",
            'name = "x"\nthreads = 1',
            "name: a profile is named after its file; remove the key",
        ),
        ('device = "cpu"', 'device = "TPU"', "device = \"TPU\": should be 'cpu', 'cuda' or 'mps'"),
        ("threads = 1", "threads = 0", "threads = 0: should be greater than 0"),
        ("threads = 1", "threads = true", "threads = true: should be a valid integer"),
        ("threads = 1", 'threads = "3"', 'threads = "3": should be a valid integer'),
        ("threads = 1", "threads = 1.0", "threads = 1.0: should be a valid integer"),
        ("threads = 1", "threads = 1\nllm = 3", "llm = 3: should be a table"),
        ("threads = 1", "threads = 1\nllm.ahead = 1", "llm.ahead = 1: should be a valid boolean"),
        (
            "threads = 1",
            'threads = 1\nattention_kernels = ["A/B@Main"]',
            'attention_kernels.0 = "A/B@Main": should match pattern',
        ),
        (
            "threads = 1",
            "threads = 1\nllm.dollars = 5",
            "llm: dollars = 5 is a cap that needs prompt_price",
        ),
        (
            "threads = 1",
            "threads = 1\nverdict.keep = [3, 1.35]",
            "verdict: keep = [3.0, 1.35] and drop = [0.9, 1.05, 1.1, 1.2, 1.35] have 2 and 5 "
            "limits: each needs one for every run",
        ),
        (
            "threads = 1",
            "threads = 1\nverdict.keep = [3, 1, 2, 1.5, 1.35]",
            "verdict: keep = [3.0, 1.0, 2.0, 1.5, 1.35] should not rise from run to run",
        ),
        (
            "threads = 1",
            "threads = 1\nverdict.drop = [0.9, 1.1, 1.0, 1.2, 1.35]",
            "verdict: drop = [0.9, 1.1, 1.0, 1.2, 1.35] should not fall from run to run",
        ),
        (
            "threads = 1",
            "threads = 1\nverdict.drop = [0.9, 1.1, 1.2, 1.25, 1.3]",
            "verdict: keep ends with 1.35 and drop with 1.3: the last run decides, so make them "
            "equal",
        ),
        (
            "threads = 1",
            "threads = 1\nverdict.keep = []",
            "verdict.keep = []: should have at least 1 item, not 0",
        ),
        (
            "threads = 1",
            "threads = 1\nverdict.drop = [-1]",
            "verdict.drop.0 = -1: should be greater than or equal to 0",
        ),
        (
            'kind = "flops"',
            'kind = "steps"',
            "budget.kind = \"steps\": should be 'flops' or 'seconds'",
        ),
        (
            "[night]",
            '[night]\nproposer = "oracle"',
            "night.proposer = \"oracle\": should be 'tpe', 'llm', 'mixed', 'command' or 'replay'",
        ),
        ("memory_gib = 4", "memory_gib = -1", "limits.memory_gib = -1: should be greater than 0"),
        (
            "memory_gib = 4",
            "memory_gib = true",
            "limits.memory_gib = true: should be a valid number",
        ),
        (
            "memory_gib = 4",
            "memory_gib = inf",
            "limits.memory_gib = Infinity: should be a finite number",
        ),
        ("[audit]", "[audit]\nshare = nan", "audit.share = NaN: should be a finite number"),
        ("[audit]", "[audit]\nshare = 2", "audit.share = 2: should be less than or equal to 1"),
        (
            "[audit]",
            "[search]\nstack_share = 0.5\narchive_share = 0.4\nablation_share = 0.2\n[audit]",
            "search: stack_share = 0.5, archive_share = 0.4, ablation_share = 0.2 add up to 1.1, "
            "the limit is 1",
        ),
        (
            "vocab_sizes = [2048]",
            "vocab_sizes = [100000]",
            "data.vocab_sizes.0 = 100000: should be less than",
        ),
        ("vocab_sizes = [2048]", "vocab_sizes = 2048", "data.vocab_sizes = 2048: should be a list"),
        ("train = [", "train = []\nx = [", "data.train = []: should have at least 1 item, not 0"),
        ("sequence_length = 128", "", "data.sequence_length is missing"),
        ("DEPTH = 3", "DEPTH = {}", "train.DEPTH = {}: should be true or false, a finite number"),
        ("DEPTH = 3", "DEPTH = nan", "train.DEPTH = NaN: should be true or false, a finite number"),
        (
            "DEPTH = 3",
            "DEPTH = [1, true]",
            "train.DEPTH = [1, true]: should be true or false, a finite number",
        ),
        ("[data]", "[data", "not valid TOML"),
    ],
)
def test_a_profile_that_cannot_be_used_says_which_file_and_key(tmp_path, old, new, named):
    assert old in LAPTOP
    path = tmp_path / "mine.toml"
    path.write_text(LAPTOP.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(configs.ProfileError) as caught:
        configs.load(str(path))
    assert str(caught.value).startswith(f"profile {path}: {named}")
    assert "tuple" not in str(caught.value).lower()


def test_a_list_is_not_reported_in_addition_to_its_items(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        LAPTOP.replace("vocab_sizes = [2048]", "vocab_sizes = [true, 7]", 1), encoding="utf-8"
    )
    with pytest.raises(configs.ProfileError) as caught:
        configs.load(str(path))
    assert str(caught.value) == (
        f"profile {path}: data.vocab_sizes.0 = true: should be a valid integer; "
        "data.vocab_sizes.1 = 7: should be greater than or equal to 256"
    )


def test_an_int_is_accepted_for_a_float_and_a_profile_survives_json():
    laptop = configs.load("laptop")
    assert laptop.limits.memory_gib == 4.0
    assert configs.Profile(**json.loads(laptop.model_dump_json())) == laptop


def test_a_file_that_is_not_utf_8_is_not_a_profile(tmp_path):
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


def test_a_profile_takes_missing_settings_from_the_one_it_extends(tmp_path):
    mine, h100 = (
        extending(tmp_path, "h100", "[train]\nDEPTH = 4\n[budget]\namount = 60\n"),
        configs.load("h100"),
    )
    assert mine.train == {**h100.train, "DEPTH": 4}
    assert (mine.budget.kind, mine.budget.amount, mine.name) == ("seconds", 60, "mine")
    assert mine.data == h100.data


def test_an_extended_profile_may_extend_another(tmp_path):
    assert extending(tmp_path, "mps").data.license == configs.load("h100").data.license


def test_a_profile_may_extend_a_file_beside_it(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "base.toml").write_text('extends = "h100"\nthreads = 7\n')
    monkeypatch.chdir(tmp_path)  # relative to the file, not to where the command runs
    mine = extending(folder, "base.toml", "[train]\nDEPTH = 4\n")
    assert (mine.threads, mine.data, mine.train["DEPTH"]) == (7, configs.load("h100").data, 4)
    assert extending(tmp_path, str(folder / "base.toml")).threads == 7


def test_a_broken_file_that_is_extended_is_the_one_that_is_named(tmp_path):
    (tmp_path / "base.toml").write_text("threads = \n")
    with pytest.raises(configs.ProfileError, match=r"base\.toml: not valid TOML"):
        extending(tmp_path, "base.toml")


def test_files_that_extend_each_other_are_refused_by_their_paths(tmp_path):
    (tmp_path / "base.toml").write_text('extends = "./mine.toml"\n')
    with pytest.raises(
        configs.ProfileError, match=r"leads back to itself: .*/base\.toml -> .*/mine\.toml -> "
    ):
        extending(tmp_path, "base.toml")


@pytest.mark.parametrize("base", ["nothing.toml", "search_space"])
def test_extending_a_file_that_is_no_profile_says_what_is_allowed(tmp_path, base):
    with pytest.raises(configs.ProfileError, match=r"or give the path of a \.toml file"):
        extending(tmp_path, base)


def test_extending_an_unknown_profile_names_those_that_exist(tmp_path):
    with pytest.raises(
        configs.ProfileError, match="extends = 'h1000': choose one of consumer, h100"
    ):
        extending(tmp_path, "h1000")


def test_profiles_that_extend_each_other_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(configs, "FOLDER", tmp_path)
    for name, base in (("a", "b"), ("b", "a"), ("c", "c")):
        (tmp_path / f"{name}.toml").write_text(f'extends = "{base}"\n')
    for name, around in (
        ("a", "b -> a -> b"),
        ("c", "c -> c"),
        (str(tmp_path / "c.toml"), "c -> c"),
    ):
        with pytest.raises(configs.ProfileError, match=f"leads back to itself: {around}"):
            configs.load(name)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/mine.toml", "~mine.toml"])
def test_a_home_of_nobody_is_an_unknown_profile(name):
    with pytest.raises(configs.ProfileError, match="unknown profile"):
        configs.load(name)
