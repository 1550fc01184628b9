import logging
import re

import numpy as np
import pytest

from ipyparcache import Logger, PrintTime
from ipyparcache.logger import format_time, pformat, short_format_time


def test_times_are_printed_and_older_logs_kept(tmp_path, capsys):
    logfile = tmp_path / "folder" / "test.log"
    for _ in range(3):
        PrintTime(logfile=logfile)("Foo")

    assert re.fullmatch(r"(Foo: 0\.\ds, 0\.0min\n){3}", capsys.readouterr().err)
    assert logfile.read_text().endswith("Foo: 0.0s, 0.0min\n")
    assert sorted(path.name for path in logfile.parent.iterdir()) == ["test.log", "test.log.1", "test.log.2"]


def test_a_folder_or_a_file_but_not_both(tmp_path):
    PrintTime(logdir=tmp_path)
    assert (tmp_path / "ipyparcache.log").exists()
    with pytest.raises(ValueError, match="both logfile and logdir"):
        PrintTime(logfile="x", logdir="y")


def test_messages_carry_who_speaks(caplog):
    caplog.set_level(logging.DEBUG)
    logger = Logger(name="me")
    logger.warn("careful")
    logger.info("by the way")
    logger.debug("in detail")

    assert [record.getMessage() for record in caplog.records] == [
        "[me]: careful",
        "[me]: by the way",
        "[me]: in detail",
    ]
    assert logger.format({"a": [1]}) == "{'a': [1]}"


def test_durations_are_written_for_people():
    assert (format_time(75.24), short_format_time(3), short_format_time(75)) == (
        "75.2s, 1.3min",
        "   3.0s",
        "  1.2min",
    )


def test_long_arrays_are_shortened():
    assert len(pformat(np.arange(10_000))) < 100
