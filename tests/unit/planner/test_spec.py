import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from unit.planner.tables import cells, ladder, read, read_one, write_csv, write_jsonl

from planner.errors import InputError
from planner.reading.expressions import Expression, parse_condition, parse_expression
from planner.reading.records import Accounting
from planner.reading.spec import ReadOptions, parse_spec, read_spec

POSITIVE = st.floats(1e-30, 1e30)
COLUMNS = ("Model Size", "a*b", "bs", "d/n", "7")


@pytest.mark.parametrize(
    ("text", "row", "value"),
    [
        ("Model Size", {"Model Size": "1e9"}, "1e9"),
        (" bs * 2048 ", {"bs": "3"}, 6144.0),
        ("bs/4", {"bs": 3}, 0.75),
        ("a*b", {"a*b": 5}, 5),
        ("a*b*2", {"a*b": 5}, 10.0),
        ("d/n/1e3", {"d/n": 5}, 0.005),
        ("7", {"7": 8}, 8),
        ("7*2", {"7": 8}, 16.0),
        ("1.5e9", {}, 1.5e9),
        ("bs*2048", {"bs": "many"}, "many"),
        ("bs*2048", {}, None),
    ],
)
def test_an_expression_is_a_column_a_scaled_column_or_a_number(
    text: str, row: Mapping[str, Any], value: Any
) -> None:
    assert parse_expression(text, COLUMNS, "here").value(row) == value


@given(POSITIVE, POSITIVE)
def test_scaling_down_undoes_scaling_up(value: float, factor: float) -> None:
    up = parse_expression(f"bs*{factor!r}", COLUMNS, "here").value({"bs": value})
    down = parse_expression(f"bs/{factor!r}", COLUMNS, "here").value({"bs": up})
    assert math.isclose(down, value, rel_tol=1e-15)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model size", "here: there is no column 'model size' (near: 'Model Size'); there are: "),
        ("Model*2", "there is no column 'Model*2'"),
        ("bs*x", "'x' after '*' must be a number above 0"),
        ("bs*0", "'0' after '*' must be a number above 0"),
        ("bs/inf", "'inf' after '/' must be a number above 0"),
    ],
)
def test_a_wrong_expression_names_the_columns_near(text: str, reason: str) -> None:
    with pytest.raises(InputError) as error:
        parse_expression(text, COLUMNS, "here")
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("x=2", "2.0", True),
        ("x==2", 2, True),
        ("x!=2", "2.0", False),
        ("x = a b", "a b", True),
        ("x<=10", "9", True),
        ("x<10", "nine", False),
        ("x>10", "nine", False),
        ("x>=2024-03", "2024-11", True),
        ("x>1", None, False),
        ("x=", None, True),
        ("x!=", None, False),
        ("x!=a", None, True),
        ("x=true", True, True),
        ("x<1", float("nan"), False),
        ("x=nan", float("nan"), True),
    ],
)
def test_a_condition_compares_numbers_as_numbers(text: str, value: Any, holds: bool) -> None:
    assert parse_condition(text, ["x"], {}).holds({"x": value}) is holds


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_conditions_agree_with_python(value: float, limit: float) -> None:
    def holds(sign: str) -> bool:
        return parse_condition(f"x{sign}{limit!r}", ["x"], {}).holds({"x": repr(value)})

    assert holds("<") is (value < limit)
    assert holds(">=") is (value >= limit)
    assert holds("=") is (value == limit) is not holds("!=")


def test_a_condition_prefers_the_raw_column_to_the_canonical_name() -> None:
    canonical = {"loss": Expression("smooth"), "params": Expression("N")}
    columns = ["loss", "smooth", "N"]
    assert parse_condition("loss<2", columns, canonical).holds({"loss": 1, "smooth": 3})
    assert parse_condition("params<2", columns, canonical).holds({"N": 1})
    with pytest.raises(InputError, match=r"no column 'tokens'.* there are: loss, smooth, N, param"):
        parse_condition("tokens<2", columns, canonical)
    for text in ("loss", "<2", "loss:2"):
        with pytest.raises(InputError, match="expected column=value"):
            parse_condition(text, columns, canonical)


def test_sweep_toml_beside_the_table_is_enough(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "t.csv",
        [
            {"Model Size": N, "D": 1e9, "bits": 3 / math.log(2), "kind": kind, "on": on}
            for kind in ("b", "a")
            for N in (1e7, 2e7)
            for on in ("yes", "no")
        ],
    )
    settings = {
        "where": ["on=yes"],
        "group": "kind",
        "columns": {"params": "Model Size", "tokens": "D*2", "loss": "bits"},
        "units": {"loss": "bits"},
        "accounting": {"flops": "6nd", "params": "all of them", "noise": 0.003},
        "base": {"name": "of others"},
    }
    (tmp_path / "sweep.toml").write_text(tomli_w.dumps(settings))
    first, second = read(tmp_path)
    assert (first.group, second.group) == ("b", "a")
    assert [(run.row, run.params, run.tokens) for run in first.runs] == [
        (2, 1e7, 2e9),
        (4, 2e7, 2e9),
    ]
    assert first.runs[0].loss == pytest.approx(3)
    assert first.accounting == Accounting("6nd", "all of them")
    assert first.noise == 0.003
    assert first.settings == settings


def test_the_command_line_overrides_the_file_and_adds_conditions(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(
        'where = ["a=1"]\ngroup = "x"\n[columns]\nloss = "l"\nparams = 5e8\n'
    )
    spec = read_spec(tmp_path, ReadOptions(maps=("loss=val=2",), where=("b=2",), group="y"))
    assert spec.columns == {"loss": "val=2", "params": "500000000.0"}
    assert spec.said_by["loss"] == "--map loss"
    assert spec.said_by["params"] == f"{tmp_path / 'sweep.toml'}: [columns] params"
    assert spec.where == ("a=1", "b=2")
    assert spec.group == "y"


def test_spec_stands_in_for_the_file_beside_the_data(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [{**row, "l2": 1.0} for row in ladder()])
    (tmp_path / "sweep.toml").write_text("not toml")
    with pytest.raises(InputError, match=r"sweep\.toml: not valid TOML"):
        read(table)
    other = tmp_path / "other.toml"
    other.write_text('[columns]\nloss = "l2"\n')
    assert {run.loss for run in read_one(table, spec=other).runs} == {1.0}
    with pytest.raises(InputError, match=r"none\.toml: cannot be read"):
        read(table, spec=tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"columns": {"parms": "N"}}, "no key 'parms' (near: 'params')"),
        ({"columns": {"params": True}}, "[columns] params is True; expected a column's name"),
        ({"colums": {}}, "'colums' is not known; did you mean 'columns'?"),
        ({"columns": ["params"]}, "columns is ['params']; expected a table"),
        ({"columns": {"group": "x"}}, "group stands inside [columns]; put it above"),
        ({"units": {"loss": "bit"}}, "[units] loss is 'bit'; allowed: nats, bits"),
        ({"units": {"lr": "x"}}, "no key 'lr'"),
        ({"accounting": {"flops": "8nd"}}, "flops is '8nd'; allowed: exact, 6nd"),
        ({"accounting": {"params": 5}}, "params is 5; expected words"),
        ({"accounting": {"noise": "0.1"}}, "noise is '0.1'; expected the relative"),
        ({"accounting": {"noise": -0.1}}, "noise is -0.1"),
        ({"where": "a=1"}, "where is 'a=1'; expected a list"),
        ({"group": 3}, "group is 3; expected the name of a column"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(
    settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError) as error:
        parse_spec(settings, "sweep.toml")
    assert str(error.value).startswith("sweep.toml: ")
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("params", "expected NAME="),
        ("prams=N", "no canonical column 'prams' (near: 'params')"),
    ],
)
def test_a_wrong_map_is_an_input_error(text: str, reason: str) -> None:
    with pytest.raises(InputError) as error:
        read_spec(None, ReadOptions(maps=(text,)))
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("columns", "suggested"),
    [
        (["Model Size", "Training FLOP", "loss"], ['params="Model Size"', 'flops="Training FLOP"']),
        (["N", "N_no_emb", "D", "C", "loss"], ['params="N"', 'tokens="D"', 'flops="C"']),
        (["params", "tokens", "val_loss"], ['loss="val_loss"']),
        (
            ["eval/macro_loss", "parameter_count", "all/total_tokens"],
            ['loss="eval/macro_loss"', 'params="parameter_count"', 'tokens="all/total_tokens"'],
        ),
        (["x", "y", "z"], ['NAME="COLUMN"']),
    ],
)
def test_missing_columns_suggest_the_mapping(
    tmp_path: Path, columns: list[str], suggested: list[str]
) -> None:
    path = write_csv(tmp_path / "t.csv", [dict.fromkeys(columns, 1)])
    with pytest.raises(InputError) as error:
        read(path)
    assert all(f"--map {one}" in str(error.value) for one in suggested)
    assert str(error.value).endswith(f"There are: {', '.join(columns)}")


def test_a_suggested_mapping_reads_the_table(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "t.csv",
        [{"Model Size": r["params"], "FLOP": r["flops"], "Val loss": r["loss"]} for r in ladder()],
    )
    with pytest.raises(InputError) as error:
        read(path)
    options = str(error.value).partition("perhaps ")[2].partition(". There")[0]
    maps = [option.replace('"', "").strip() for option in options.split("--map ") if option]
    assert [run.loss for run in read_one(path, *maps).runs] == [row["loss"] for row in ladder()]


def test_an_empty_mapping_leaves_a_column_out(tmp_path: Path) -> None:
    rows = [cells(status="exported", budget=5.0, loss=3 - k / 10) for k in range(3)]
    path = write_csv(tmp_path / "t.csv", rows)
    with pytest.raises(InputError, match=r"status is 'exported'.*map status to nothing"):
        read(path)
    sweep = read_one(path, "status=", "budget=")
    assert len(sweep.runs) == 3
    assert sweep.runs[0].budget_flops is None


def test_native_records_need_no_mapping_but_take_one(tmp_path: Path) -> None:
    row = {
        "schema_version": 1, "run": "a", "status": "done", "params": 9e5, "block_params": 1e5,
        "tokens": 1e6, "flops": 1e12, "budget_flops": 1e12, "lr_peak": 1e-3, "loss": 1.0,
    }  # fmt: skip
    path = write_jsonl(tmp_path / "runs.jsonl", [row])
    sweep = read_one(path)
    assert (sweep.runs[0].params, sweep.runs[0].lr) == (1e5, 1e-3)
    assert sweep.runs[0].budget_flops == 1e12
    assert sweep.accounting.flops == "exact"
    assert "without embeddings" in str(sweep.accounting.params)
    mapped = read_one(path, "params=params")
    assert mapped.runs[0].params == 9e5
    assert mapped.accounting == Accounting("exact", None)


def test_no_column_with_a_meaning_of_its_own_is_suggested_for_another(tmp_path: Path) -> None:
    renamed = [
        {"P": row["params"], "T": row["tokens"], "L": row["loss"], "batch_tokens": 1e6}
        for row in ladder()
    ]
    with pytest.raises(InputError, match="no column loss, params, tokens, flops") as error:
        read(write_csv(tmp_path / "runs.csv", renamed))
    assert "batch_tokens=" not in str(error.value)
    assert 'tokens="batch_tokens"' not in str(error.value)
    assert "There are: P, T, L, batch_tokens" in str(error.value)
    budgets = [
        {"N": row["params"], "loss": row["loss"], "budget": row["flops"]} for row in ladder()
    ]
    with pytest.raises(InputError, match='flops="budget"'):
        read(write_csv(tmp_path / "runs.csv", budgets))


def test_one_column_mapped_twice_is_an_error(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "runs.csv", ladder())
    with pytest.raises(InputError, match="--map params: given twice, as 'lr' and as 'tokens'"):
        read(source, "params=lr", "params=tokens")
