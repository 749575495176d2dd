"""What sets configurations apart is said in the words of the flags, wherever records are shown that look alike."""

import json

import polars as pl
import pytest

from bdjax.reporting import details, filters, tables
from bdjax.results.apart import apart, runs_apart
from bdjax.results.methods import methods
from bdjax.results.scenarios import scenarios
from bdjax.results.sensitivity import swept
from bdjax.results.views import views


def config(strength=0.2, lr=0.1, **more):
    return {"attack": {"name": "blended", "config": {"strength": strength, "target": 0}}, "recipe": {"lr": lr}, **more}


@pytest.mark.parametrize(
    "settings, texts",
    [
        ([config(), config()], ["", ""]),
        ([config(), config(0.5)], ["strength 0.2", "strength 0.5"]),
        ([config(lr=0.01), config(0.5)], ["strength 0.2, recipe.lr 0.01", "strength 0.5, recipe.lr 0.1"]),
        ([config(), config(dataset={"digest": "0123456789abcdef" * 4})], ["", "dataset.digest 01234567"]),
        ([config(model={"depth": None}), config(model={"depth": [1, 1]})], ["model.depth null", "model.depth [1, 1]"]),
        ([config(), config(model={"depth": [1, 1]})], ["", "model.depth [1, 1]"]),
        ([config()], [""]),
        ([], []),
    ],
)
def test_the_fields_that_differ_are_named(settings, texts):
    assert apart(settings) == texts


@pytest.fixture(scope="module")
def two(records):
    """Records of one attack with two strengths."""
    one = records.filter(pl.col("attack") == "badnets")
    return pl.concat([_edited(one, "attack", "strength", value) for value in (0.5, 0.25)])


def _edited(records, part, name, value):
    texts = []
    for text in records["config"]:
        settings = json.loads(text)
        settings[part]["config"] = (settings[part]["config"] or {}) | {name: value}
        texts.append(json.dumps(settings, sort_keys=True))
    cells = [f"{value}{cell}"[:24] for cell in records["cell"]]
    return records.with_columns(config=pl.Series(texts), cell=pl.Series(cells))


def test_tables_titles_and_triggers_name_the_field(two):
    pooled = tables.table(two)
    assert set(pooled["settings"]) == {"strength 0.25", "strength 0.5"}
    printed = tables.full(two)
    assert "settings" in printed.heads and not {"cell", "training"}.intersection(printed.heads)
    shown = scenarios(two)
    assert [one.title.rpartition(" · ")[2] for one in shown] == ["strength 0.5", "strength 0.25"]
    assert [one.slug.endswith(end) for one, end in zip(shown, ("strength-0-5", "strength-0-25"), strict=True)] == [True, True]
    assert [title for title, _ in details._attacks(shown)] == ["badnets, strength 0.5", "badnets, strength 0.25"]


def test_the_leaderboard_names_the_field_of_a_defense(two):
    defended = two.filter(pl.col("defense") == "ft")
    both = pl.concat([two, _edited(defended, "defense", "epochs", 7)])
    board = tables.board(both)
    at, name = board.heads.index("settings"), board.heads.index("defense")
    assert {line[at].text for line in board.rows if line[name].text == "ft"} == {"epochs 5", "epochs 7"}
    assert {line[at].text for line in board.rows if line[name].text != "ft"} == {""}
    assert "variant" not in board.heads
    chosen = filters.chosen(views(both), board, filters.facets(both))  # what the page shows where its reader chooses an attack
    assert "settings" not in chosen["columns"] and len(next(iter(chosen["cells"].values()))) == len(board.rows)


def test_two_states_of_a_users_file_are_two_rows_of_the_leaderboard(two):
    sources = ("a" * 64, "b" * 64)
    edited = [pl.col("config").str.replace('"name": "ft"', f'"name": "ft", "source": "{source}"') for source in sources]
    both = pl.concat([two.with_columns(config=config) for config in edited])
    board = tables.board(both)
    at, name = board.heads.index("settings"), board.heads.index("defense")
    assert {line[at].text for line in board.rows if line[name].text == "ft"} == {"source aaaaaaaa", "source bbbbbbbb"}


def test_a_hyper_parameter_of_two_configurations_has_a_figure_for_each(two):
    defended = two.filter(pl.col("defense") == "ft")
    several = pl.concat([defended.with_columns(hyper=pl.lit(json.dumps({"lr": lr}))) for lr in (0.1, 0.2)])
    (one,) = swept(several)
    assert one.settings == "" and len(one.lines) == 2
    first, second = swept(pl.concat([several, _edited(several, "defense", "epochs", 7)]))
    assert {first.settings, second.settings} == {"epochs 5", "epochs 7"} and first.title.endswith(first.settings)


def test_two_states_of_a_networks_file_are_two_networks(two):
    one = two.filter(pl.col("cell").str.starts_with("0.5"))
    sources = ("a" * 64, "b" * 64)
    states = [one.with_columns(config=_named("model", source, pl.col("config"))) for source in sources]
    both = pl.concat([states[0], states[1].filter(pl.col("defense").is_in(["none", "ft"]))])
    board = tables.board(both)
    assert {line[board.heads.index("model")].text for line in board.rows} == {"cnn aaaaaaaa", "cnn bbbbbbbb"}
    assert set(tables.table(both)["model"]) == {"cnn aaaaaaaa", "cnn bbbbbbbb"}  # also where one of them met a defense alone
    assert [facet.values for facet in filters.facets(both) if facet.key == "model"] == [("cnn aaaaaaaa", "cnn bbbbbbbb")]


def _named(part, source, config):
    return config.str.replace(f'"{part}": {{', f'"{part}": {{"source": "{source}", ', literal=True)


def test_a_defense_of_one_training_alone_says_which(two):
    pooled = tables.table(two.filter((pl.col("defense") != "fp") | pl.col("cell").str.starts_with("0.5")))
    assert set(pooled.filter(pl.col("defense") == "fp")["settings"]) == {"strength 0.5"}


def test_strengths_of_one_attack_are_columns_and_choices(two):
    names = ("badnets, strength 0.25", "badnets, strength 0.5")
    assert {name for method in methods(two, 10) for name in method.attacks.values()} == {*names}
    assert [facet.values for facet in filters.facets(two) if facet.key == "attack"] == [names]
    assert set(views(two).rows["chosen_attack"].drop_nulls()) == {*names}
    printed = tables.full(two)
    (facet,) = [facet for facet in filters.facets(two) if facet.key == "attack"]
    assert {facet.place(about) for about in printed.about} == {0, 1} and "attack_variant" not in printed.columns


def test_figures_of_runs_hold_one_setting_of_a_defense(two):
    traced = two.filter((pl.col("defense") == "ft") & pl.col("cell").str.starts_with("0.5"))
    traced = traced.with_columns(trace=pl.lit(json.dumps({"loss": [1.0, 0.5]})))
    several = pl.concat([traced.with_columns(hyper=pl.lit(json.dumps({"lr": lr}))) for lr in (0.1, 0.2)])
    (shown,) = scenarios(several)
    drawn = list(details._courses(shown))
    assert [one.caption.partition(" against ")[0] for one in drawn] == ["ft, lr 0.1", "ft, lr 0.2"]
    assert len({one.slug for one in drawn}) == 2
    (one,) = details._courses(scenarios(traced)[0])
    assert one.caption.startswith("ft against ")


def test_a_setting_reads_the_same_wherever_it_stands(two):
    rows = two.filter((pl.col("defense") == "ft") & pl.col("cell").str.starts_with("0.5"))
    both = pl.concat([_edited(rows, "defense", "best", value) for value in (True, False)])
    assert {method.label for method in methods(both, 10)} == {"ft, best true", "ft, best false"}
    assert {title for title, _ in runs_apart(both)} == {"ft, best true", "ft, best false"}
