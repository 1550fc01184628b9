from benchmarks.rounds import OURS, Contest, Standing, measure, milliseconds, report


def contest(log, floor=None):
    def does(name, seconds):
        def run():
            log.append(name)
            return seconds

        return run

    return Contest("work", {OURS: does("a", 0.1), "joblib": does("b", 0.3), "other": does("c", 0.05)}, floor)


def test_everybody_runs_once_uncounted_and_then_in_turn_from_another_start():
    log = []
    standings = measure(contest(log), rounds=3)

    assert "".join(log) == "abc" + "abc" + "bca" + "cab"
    assert standings["joblib"] == Standing(0.3, 0.3)


def test_the_report_gives_ratios_to_ours_and_holds_it_to_its_floor():
    text = report(contest([], floor=2.0), measure(contest([]), rounds=1))

    assert "3.00x ours" in text
    assert "0.50x ours" in text
    assert "floor: 2x joblib, reached" in text
    assert "MISSED" in report(contest([], floor=4.0), measure(contest([]), rounds=1))


def test_durations_keep_three_digits():
    assert [milliseconds(each) for each in (0.0000123, 0.0123, 1.23)] == ["0.0123 ms", "12.3 ms", "1,230 ms"]
