from __future__ import annotations

import ast

import pytest

from ipyparcache.analysis import refusals
from ipyparcache.analysis.helpers import Facts, Helper, helper_of
from ipyparcache.analysis.refusals import Refusal
from ipyparcache.analysis.steps import Comprehension, Loop, Serial, steps_of

FACTS = Facts(
    helpers={
        "note": Helper(writes=frozenset({"N"})),
        "fill": Helper(changes=frozenset({0})),
        "reads_tmp": Helper(reads=frozenset({"tmp"})),
        "memo": Helper(mutates=frozenset({"cache"})),
        "runs": Helper(dynamic="exec"),
        "writes": Helper(file="'log'"),
    },
    modules=frozenset({"np", "os", "sys", "plt", "heapq"}),
    drawn=frozenset({"ax", "axes"}),
)


def loop_of(source: str) -> Loop:
    steps = steps_of(ast.parse(source), FACTS)
    assert not isinstance(steps, Refusal), steps
    [loop] = [step for step in steps if isinstance(step, Loop)]
    return loop


def refusal_of(source: str) -> Refusal:
    found = steps_of(ast.parse(source), FACTS)
    assert isinstance(found, Refusal), found
    return found


FORMS = {
    "out.append(x)": ["append"],
    "out.extend([x])": ["extend"],
    "d[x] = 1": ["item"],
    "d[x][0].add(x)": ["add"],
    "d[x] += 1": ["augmented"],
    "d.setdefault(x, []).append(1)": ["append"],
    "d[x] = d.get(x, 0) + 1": ["own"],
    "d[x] = max(d[x], 3)": ["own"],
    "a[x, :] = 1": ["item"],
    "a[x], b[x] = f(x)": ["item", "item"],
    "a[x] = b[x] = 1": ["item", "item"],
    "state.items.append(x)": ["append"],
    "state.total += x": ["augmented"],
    "state.last = x": ["attribute"],
    "t += x": ["reduce"],
    "t = t + x - 1": ["reduce"],
    "t = x + t": ["reduce"],
    "t = max(t, x)": ["reduce"],
    "t, u = t + x, u * x": ["reduce"],
    "df = pd.concat([df, f(x)])": ["reduce"],
    "s = s.union({x})": ["reduce"],
    "del d[x]": ["delete"],
    "df.loc[x, 'c'] = 1": ["item"],
    "heapq.heappush(h, x)": ["call"],
    "if x > best: best, where = x, 1": ["conditional"],
    "if x not in seen: seen.add(x)": ["conditional"],
    "if best is None or x > best['v']: best = {'v': x}": ["conditional"],
    "if len(x) > len(t): t = x": ["conditional"],
    "if f(x) > best: best = x": ["conditional"],
    "ok = ok and x > 0": ["reduce"],
    "try: d[x] += 1\n    except KeyError: d[x] = 1": ["conditional"],
    "try: d[x, 0].append(y)\n    except KeyError: d[x, 0] = [y]": ["conditional"],
    "ok = f(x) or ok": ["reduce"],
    "df.drop(columns=x, inplace=True)": ["drop"],
    "d[x].append(x) if x else None": ["append"],
    "None if x else out.append(x)": ["append"],
    "x and y and out.append(x)": ["append"],
    "x or out.append(x)": ["append"],
    "[out.append(y) for row in x if row for y in row]": ["append"],
    "(out if x else more).append(x)": ["append", "append"],
    "(out if x else more).setdefault(x, []).append(x)": ["append", "append"],
    "t = x if x < t else t": ["conditional"],
    "t = [x] if t is None else t + [x]": ["conditional"],
    "df = df.merge(x, on='k', how='left')": ["reduce"],
    "if df is None: df = x\n    else: df = df.merge(x, on='k')": ["conditional"],
    "if df is None: df = x\n    else: df = pd.concat([df, x])": ["conditional"],
    "ax.plot(x, f(x), label='a')": ["draw"],
    "axes[x, 0].text(1, 1, 'a', transform=ax.transAxes)": ["draw"],
    "print(x, file=f)": ["call"],
    "xs.set_postfix(at=x)": ["set_postfix"],
    "print(x, file=sys.stderr)": [],
    "y = x * 2": [],
    "x.score = 1": [],
    "x.append(2)": [],
    "np.add(x, 1)": [],
    "sys.stdout.write('a')": [],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_recognised_form_is_replayed(form):
    loop = loop_of(f"for x in xs:\n    {form}")

    assert [site.method for site in loop.parfor.sites] == FORMS[form]


REFUSED = {
    "break": (refusals.BreakInLoop, None),
    "yield x": (refusals.StatementInLoop, None),
    "await x": (refusals.StatementInLoop, None),
    "exec('a = 1')": (refusals.DynamicNames, None),
    "runs()": (refusals.DynamicNames, None),
    "get_ipython().system('ls')": (refusals.ShellInLoop, None),
    "y = prev; prev = x": (refusals.CarriedVariable, "prev"),
    "t += x; out.append(t)": (refusals.CarriedReduction, "t"),
    "print(len(out)); out.append(x)": (refusals.CarriedContainer, "out"),
    "fib.append(fib[-1])": (refusals.CarriedContainer, "fib"),
    "t = t * 2 + x": (refusals.CarriedVariable, "t"),
    "y = stack.pop()": (refusals.MutatorResult, "stack"),
    "b = out; b.append(x)": (refusals.ChangedThroughAlias, "b"),
    "fill(out)": (refusals.ChangedByCall, "out"),
    "note(x)": (refusals.GlobalWrite, "N"),
    "memo(x)": (refusals.GlobalChange, "cache"),
    "reads_tmp(); tmp = x": (refusals.ReadByHelper, "tmp"),
    "del gone": (refusals.DeletesOuter, "gone"),
    "os.environ['A'] = x": (refusals.ModuleChanged, "os"),
    "plt.rcParams.update(x)": (refusals.ModuleChanged, "plt"),
    "xs.append(x)": (refusals.IterableChanged, "xs"),
    "def g():\n        global t\n        t = 1\n    g()": (refusals.GlobalWrite, "t"),
    "if x: flag = 1\n    y = flag": (refusals.CarriedVariable, "flag"),
    "for j in x: last = j\n    y = last": (refusals.CarriedVariable, "last"),
    "np.add(x, 1, out=acc)": (refusals.TargetNotAName, "acc"),
    "y = next(source)": (refusals.TakenByNext, "source"),
    "best = pick(best, x)": (refusals.CarriedVariable, "best"),
    "y = heapq.heappop(heap)": (refusals.ChangedByFunction, "heap"),
    "random.shuffle(deck)": (refusals.ChangedByFunction, "deck"),
    "f = open('log', 'a')": (refusals.SameFile, None),
    "np.savetxt('a.txt', x)": (refusals.SameFile, None),
    "writes(x)": (refusals.SameFile, None),
    "ok = ok and f(x)": (refusals.CarriedVariable, "ok"),
}


@pytest.mark.parametrize("body", REFUSED)
def test_what_depends_on_earlier_iterations_is_refused_by_name(body):
    kind, variable = REFUSED[body]

    refusal = refusal_of(f"for x in xs:\n    {body.replace('; ', chr(10) + '    ')}")

    assert type(refusal) is kind
    assert refusal.variable == variable
    assert refusal.line >= 2 or kind in (refusals.IterableChanged,)
    assert refusal.reason
    assert refusal.advice


PRIVATE = {
    "if x:\n        y = 1\n    else:\n        y = 2\n    z = y": ["x", "y", "z"],
    "try:\n        y = 1\n    except ValueError:\n        y = 2\n    z = y": ["x", "y", "z"],
    "try:\n        y = 1\n    finally:\n        z = y": ["x", "y", "z"],
    "with f() as g:\n        y = g\n    z = y": ["x", "g", "y", "z"],
    "match x:\n        case 1:\n            y = 1\n        case _:\n            y = 2\n    z = y": [
        "x",
        "y",
        "z",
    ],
    "y = 0\n    for j in x:\n        y += j\n    z = y": ["x", "y", "j", "z"],
    "while (y := f()):\n        z = y": ["x", "y", "z"],
    "while True:\n        y = 1\n        break\n    z = y": ["x", "y", "z"],
    "import math\n    z = math.pi": ["x", "math", "z"],
    "if x:\n        raise ValueError\n    else:\n        y = 1\n    z = y": ["x", "y", "z"],
    "if x:\n        continue\n    y = 1": ["x", "y"],
    "z = [y for y in x]": ["x", "z"],
    "z = [y := v for v in x]": ["x", "z", "y"],
    "for j in range(3):\n        y = j\n    z = y": ["x", "j", "y", "z"],
}


@pytest.mark.parametrize("body", PRIVATE)
def test_names_assigned_before_they_are_read_on_every_path_are_private(body):
    loop = loop_of(f"for x in xs:\n    {body}")

    assert sorted(loop.parfor.temporaries) == sorted(PRIVATE[body])


@pytest.mark.parametrize("target", ["o.x", "d['k']", "(a, o.x)"])
def test_a_target_that_is_no_name_is_refused(target):
    assert type(refusal_of(f"for {target} in xs:\n    pass")) is refusals.TargetNotAName


def test_a_cell_without_a_loop_is_refused():
    refusal = refusal_of("if n:\n    for i in xs:\n        pass")

    assert type(refusal) is refusals.NothingParallel


def test_a_cell_whose_loops_are_while_loops_is_told_why():
    refusal = refusal_of("n = 3\nwhile n:\n    n -= 1")

    assert type(refusal) is refusals.OnlyWhile
    assert refusal.line == 2


def test_a_map_is_refused_with_the_comprehension_to_type():
    refusal = refusal_of("ys = list(map(f, xs))")

    assert type(refusal) is refusals.MapCall
    assert "`[f(x) for x in xs]`" in refusal.advice
    assert "`[x.get(x0) for x0 in xs]`" in refusal_of("ys = list(map(x.get, xs))").advice
    assert type(refusal_of("ys = list(map(lambda x: x, xs))")) is refusals.NothingParallel


def test_a_generator_for_an_unknown_function_is_refused_with_the_list_to_type():
    refusal = refusal_of("x = table(f(v) for v in xs)")

    assert type(refusal) is refusals.ConsumerUnknown
    assert "table([" in refusal.advice


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("a = [f(x) for x in xs]", "list"),
        ("a = {f(x) for x in xs}", "set"),
        ("a = {x: f(x) for x in xs}", "dict"),
        ("a = sum(f(x) for x in xs)", "generator"),
        ("a = np.array([f(x) for x in xs])", "list"),
        ("a = ', '.join(f(x) for x in xs)", "generator"),
        ("a = np.mean(list(f(x) for x in xs))", "generator"),
        ("[f(x) for x in xs]", "list"),
    ],
)
def test_a_comprehension_is_run_over_its_outermost_loop(source, kind):
    steps = steps_of(ast.parse(source), FACTS)

    assert not isinstance(steps, Refusal)
    [step] = steps
    assert isinstance(step, Comprehension)
    assert step.kind == kind


def test_statements_around_loops_stay_where_they_are():
    steps = steps_of(ast.parse("a = 1\nfor x in xs:\n    out.append(x)\nb = 2\nc = [v for v in b]\nc"), FACTS)

    assert not isinstance(steps, Refusal)
    assert [type(step) for step in steps] == [Serial, Loop, Serial, Comprehension, Serial]


def test_classification_leaves_the_source_as_it_is():
    source = (
        "for i in range(9):\n    a[i], s = f(i)\n    out.append(s)\n"
        "    if s > t:\n        t = s\n    d[i] = u = 3"
    )
    tree = ast.parse(source)
    before = ast.dump(tree)

    steps_of(tree, FACTS)

    assert ast.dump(tree) == before


def test_a_definition_of_the_cell_itself_is_followed():
    source = "def note(x):\n    global N\n    N += x\nfor x in xs:\n    note(x)"

    refusal = steps_of(ast.parse(source), Facts())

    assert isinstance(refusal, refusals.GlobalWrite)
    assert refusal.line == 5


def test_a_container_that_each_iteration_reads_only_at_its_own_place_is_its_own():
    loop = loop_of("for i in range(len(a)):\n    a[i] = f(a[i]) + a[i]")

    assert [rows.root for rows in loop.parfor.own_rows] == ["a"]


@pytest.mark.parametrize("body", ["a[i] = a[i - 1]", "a[i] = a[j]", "g(a); a[i] = a[i] + 1"])
def test_a_container_that_is_read_elsewhere_is_refused(body):
    refusal = refusal_of("for i in range(9):\n    " + body.replace("; ", "\n    "))

    assert type(refusal) is refusals.CarriedContainer


def test_what_a_function_does_follows_the_functions_that_it_names():
    node = ast.parse("def f(a, b):\n    b.append(note(1))\n    return helper + a").body[0]
    assert isinstance(node, ast.FunctionDef)

    helper = helper_of(node, FACTS)

    assert {"note", "helper"} <= helper.reads
    assert helper.writes == {"N"}
    assert helper.changes == {1}


@pytest.mark.parametrize(
    ("call", "path"),
    [
        ("open(f'{x}.txt', 'w')", None),
        ("open('a.txt')", None),
        ("open('a.txt', mode='wb')", "'a.txt'"),
        ("open(folder + '/a', 'a')", "folder + '/a'"),
        ("frame.to_csv('a.csv')", "'a.csv'"),
        ("frame.to_csv(f'{x}.csv')", None),
        ("frame.to_csv()", None),
    ],
)
def test_a_file_that_every_iteration_writes_is_found(call, path):
    found = steps_of(ast.parse(f"for x in xs:\n    {call}"), FACTS)

    assert (found.path if isinstance(found, refusals.SameFile) else None) == path


def test_names_assigned_on_both_sides_of_a_replayed_statement_are_kept_with_it():
    site = loop_of("for x in xs:\n    t = 1\n    a[x] = t\n    t = 2\n    u = 3").parfor.sites[0]
    inner = loop_of("for x in xs:\n    for j in x:\n        a[j] = 1").parfor.sites[0]

    assert site.unstable == ("t",)
    assert inner.unstable == ("j",)
