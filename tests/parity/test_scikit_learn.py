"""scikit-learn on our workers and with our Memory: the same results, in a script and in a kernel."""

import subprocess
import sys
import textwrap

import pytest

FITTED = """
    import numpy as np
    from sklearn.datasets import load_iris
    from sklearn.decomposition import PCA
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import Pipeline
    from sklearn.svm import SVC

    import ipyparcache

    samples, kinds = load_iris(return_X_y=True)

    def fitted(memory=None):
        forest = RandomForestClassifier(20, random_state=0, n_jobs=2).fit(samples, kinds)
        pipeline = Pipeline([("reduce", PCA()), ("classify", SVC())], memory=memory)
        grid = {"reduce__n_components": [2, 3], "classify__C": [1, 10]}
        search = GridSearchCV(pipeline, grid, n_jobs=2, cv=2).fit(samples, kinds)
        return [
            forest.predict_proba(samples).tolist(),
            search.best_params_,
            search.cv_results_["mean_test_score"].tolist(),
            cross_val_score(SVC(), samples, kinds, n_jobs=2, cv=3).tolist(),
        ]
"""


def test_a_script_gets_the_same_results_and_keeps_the_fitted_steps(tmp_path):
    compared = """
        plain = fitted()
        ipyparcache.register_joblib()
        memory = ipyparcache.Memory("cache", verbose=0)
        assert fitted(memory) == fitted(memory) == plain
        print(len(memory.store_backend.get_items()), "fitted steps")
    """
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(FITTED) + textwrap.dedent(compared), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False
    )

    # Two folds and two numbers of components, and the best of them on all samples.
    assert (done.stdout, done.stderr) == ("5 fitted steps\n", "")


IN_PLACE = """
    import sys
    import ipyparcache
    sys.modules["joblib"] = ipyparcache

    import joblib.memory
    from joblib.parallel import BACKENDS, Parallel
    from sklearn.datasets import load_iris
    from sklearn.ensemble import StackingClassifier
    from sklearn.naive_bayes import GaussianNB
    from sklearn.tree import DecisionTreeClassifier

    import numpy as np

    def place():
        import joblib.memory
        import joblib.parallel
        return joblib is ipyparcache, joblib.memory is ipyparcache.memory, "joblib.hashing" in sys.modules

    samples, kinds = load_iris(return_X_y=True)

    def fitted(n_jobs):
        models = [("tree", DecisionTreeClassifier(random_state=0)), ("bayes", GaussianNB())]
        stacked = StackingClassifier(models, final_estimator=GaussianNB(), n_jobs=n_jobs, cv=2)
        return stacked.fit(samples, kinds).predict_proba(samples).round(9).tolist()

    assert joblib.memory is ipyparcache.memory and joblib.memory.__spec__.name == "ipyparcache.memory"
    assert Parallel is ipyparcache.Parallel and BACKENDS is ipyparcache.parallel.BACKENDS
    print(place(), Parallel(n_jobs=2)(joblib.delayed(place)() for _ in range(2)))
    assert fitted(2) == fitted(1)
    try:
        import joblib.nonsense
    except ModuleNotFoundError as error:
        print(error)
"""


def test_a_library_imports_from_us_what_it_imports_from_joblib(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(IN_PLACE), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False
    )

    ours = (True, True, False)
    assert (done.stdout.splitlines(), done.stderr) == (
        [f"{ours} {[ours, ours]}", "No module named 'joblib.nonsense'"],
        "",
    )


@pytest.mark.kernel
def test_a_notebook_gets_the_same_results_a_bar_and_what_workers_print(kernel):
    kernel.run(textwrap.dedent(FITTED))
    plain = kernel.run("plain = fitted(); print(plain[2])")
    kernel.run("ipyparcache.register_joblib()")
    ours = kernel.run("ours = fitted(); print(ours[2])")
    same = kernel.run("print(ours == plain)")
    talking = kernel.run(
        textwrap.dedent("""
            class Talking(SVC):
                def fit(self, samples, kinds):
                    print("fitting")
                    return super().fit(samples, kinds)

            scores = cross_val_score(Talking(), samples, kinds, n_jobs=2, cv=3)
        """)
    )

    assert (ours.stdout, ours.error, same.stdout) == (plain.stdout, "", "True\n")
    assert (talking.stdout, talking.error) == ("fitting\n" * 3, "")
    assert all("joblib" in note for note in ours.notes())
