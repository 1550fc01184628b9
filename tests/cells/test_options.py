import re

import pytest

from ipyparcache.cells.cached import CACHED_OPTIONS
from ipyparcache.cells.options import (
    Option,
    Parsed,
    WrongOption,
    help_text,
    one_of,
    parse_line,
    seconds,
    share,
    whole,
)
from ipyparcache.magics import PARALLEL_OPTIONS

OPTIONS = (
    Option("--jobs", "how many", whole, "N", None, "-j"),
    Option("--quiet", "say nothing", None, "", False),
    Option("--on-error", "what then", one_of("raise", "collect"), "HOW", "raise"),
    Option("--progress", "show it", None, "", None),
    Option("--no-progress", "hide it"),
    Option("--compress", "smaller", str, "CODEC", None, "", "zlib"),
)


def parsed(line):
    return parse_line("%%magic", line, OPTIONS)


def test_every_option_has_a_value_given_or_not():
    assert parsed("").values == {
        "jobs": None, "quiet": False, "on_error": "raise", "progress": None, "compress": None,
    }  # fmt: skip


@pytest.mark.parametrize("line", ["-j 4", "-j4", "--jobs 4", "--jobs=4", "-j  4 --quiet"])
def test_a_value_may_stand_apart_or_attached(line):
    assert parsed(line).values["jobs"] == 4


def test_a_negative_number_is_a_value_not_an_option():
    assert parsed("-j -1").values["jobs"] == -1


def test_a_switch_can_be_switched_off():
    assert parsed("--no-progress").values["progress"] is False
    assert parsed("--progress").values["progress"] is True


def test_words_are_what_is_no_option():
    assert parsed("model --quiet scores").words == ("model", "scores")


def test_quotes_keep_a_value_together():
    found = parse_line("%%cached", "--key 'a + b' x", CACHED_OPTIONS)

    assert (found.values["key"], found.words) == ("a + b", ("x",))


def test_an_option_with_a_default_value_may_stand_alone():
    assert parsed("--compress --quiet").values["compress"] == "zlib"
    assert parsed("--compress lz4").values["compress"] == "lz4"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--quite", "did you mean `--quiet`?"),
        ("--on-eror raise", "did you mean `--on-error`?"),
        ("-j four", "`-j four`: a whole number is wanted"),
        ("-j", "`-j` wants a value: -j N"),
        ("--jobs --quiet", "`--jobs` wants a value"),
        ("--on-error colect", "did you mean `collect`?"),
        ("--quiet=yes", "`--quiet` takes no value"),
        ("--compress 'zlib", "a quotation mark is not closed"),
    ],
)
def test_a_wrong_line_says_what_is_wrong_and_what_was_meant(line, said):
    with pytest.raises(WrongOption) as caught:
        parsed(line)

    assert said in str(caught.value)
    assert "%%magic --help" in str(caught.value)


def test_an_unknown_backend_of_a_loop_is_told_with_those_there_are():
    with pytest.raises(WrongOption, match="processes, threads, sequential"):
        parse_line("%%parallel", "--backend gpu", PARALLEL_OPTIONS)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--chunk 0", "`--chunk 0`: a whole number from 1 on is wanted"),
        ("--retries -1", "`--retries -1`: a whole number from 0 on is wanted"),
        ("--seed -1", "`--seed -1`: a whole number from 0 on is wanted"),
        ("--inner-threads 0", "`--inner-threads 0`: a whole number from 1 on is wanted"),
        ("--timeout 0", "`--timeout 0`: a positive number of seconds is wanted"),
        ("--background 3x", "`--background 3x`: the name of a variable is wanted"),
        ("--background for", "`--background for`: the name of a variable is wanted"),
    ],
)
def test_a_value_that_a_loop_cannot_be_run_with_is_told_before_it_runs(line, said):
    with pytest.raises(WrongOption, match=re.escape(said)):
        parse_line("%%parallel", line, PARALLEL_OPTIONS)


def test_help_is_asked_for_wherever_it_stands():
    assert parsed("-j 4 --help").help_wanted
    text = help_text("%%magic [options]", "Does things.", OPTIONS)
    assert "-j, --jobs N" in text
    assert "how many\n" in text
    assert "what then (raise if not given)" in text


def test_a_line_magics_statement_is_left_as_it_is():
    found = parse_line("%cached", "--ignore v x = f('a  b')", CACHED_OPTIONS, stop_at_word=True)

    assert found.words == ("x = f('a  b')",)
    assert found.values["ignore"] == ("v",)


@pytest.mark.parametrize(("text", "value"), [("2%", 0.02), ("0.5", 0.5), ("100%", 1.0)])
def test_a_share_is_a_percentage_or_a_fraction(text, value):
    assert share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["150%", "-1", "x"])
def test_other_shares_are_refused(text):
    with pytest.raises(ValueError, match=r".+"):
        share(text)


@pytest.mark.parametrize(("text", "value"), [("30", 30.0), ("1.5", 1.5), ("2m", 120.0)])
def test_seconds_may_have_a_unit(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ('--key time.strftime("%Y")', 'time.strftime("%Y")'),
        ("--key=f('a b')", "f('a b')"),
        ("--key 'a + 1'", "a + 1"),
        ('--key "a"', "a"),
        ("--key f'{x}'", "f'{x}'"),
    ],
)
def test_quotation_marks_inside_an_expression_are_its_own(typed, read):
    option = Option("--key", "one more value", str, "EXPR", is_code=True)

    assert parse_line("%%cached", f"{typed} rest", [option]) == Parsed({"key": read}, ("rest",))
