"""Measures the structure of the package: long functions, long parameter lists, long files, and the way to the loss.

    python tests/structure.py

Prints the functions of more than 60 lines, those with 8 or more parameters outside ops/, the files of more than 400
lines, and the files of the package whose functions run between a record on disk and the loss of the joint family: first
those on the host, which make a row of a batch, then those that are traced for the device. Files of ops/, which are one
operation, count as one.
"""

import ast
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "ehrwear_jax"
MAX_LINES, MANY_PARAMETERS, MAX_FILE = 60, 8, 400


def functions(package=PACKAGE):
    """[(path, name, lines, parameters beside self)] of every function of the package."""
    found = []
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                a = node.args
                names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
                n = len(names) - (names[:1] in (["self"], ["cls"])) + (a.vararg is not None) + (a.kwarg is not None)
                found.append((str(path.relative_to(package)), node.name, node.end_lineno - node.lineno + 1, n))
    return found


def long_functions(package=PACKAGE):
    """Functions of more than MAX_LINES lines."""
    return [f for f in functions(package) if f[2] > MAX_LINES]


def wide_functions(package=PACKAGE):
    """Functions with MANY_PARAMETERS or more, outside ops/."""
    return [f for f in functions(package) if f[3] >= MANY_PARAMETERS and not f[0].startswith("ops/")]


def long_files(package=PACKAGE):
    """[(path, lines)] of files of more than MAX_FILE lines."""
    lines = ((str(p.relative_to(package)), len(p.read_text().splitlines())) for p in sorted(package.rglob("*.py")))
    return [(path, n) for path, n in lines if n > MAX_FILE]


def files_run(function):
    """Paths of the package's files in which functions are called while this one runs, ops/ as one."""
    found = set()

    def note(frame, event, argument):
        del argument
        path = Path(frame.f_code.co_filename)
        if event == "call" and frame.f_code.co_name != "<module>" and path.is_relative_to(PACKAGE):
            relative = path.relative_to(PACKAGE)
            found.add("ops/" if relative.parts[0] == "ops" else str(relative))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return sorted(found)


def files_to_the_loss():
    """(files that make a batch of records, files that make a loss of a batch) of the joint family."""
    sys.path.insert(0, str(REPO / "tests" / "helpers"))
    import jax
    import small_run

    from ehrwear_jax.training import feed, sharding
    from ehrwear_jax.training.pretrain import make_task

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        small_run.write_inputs(root)
        store = small_run.store(small_run.prepare(root), "train")
        model = small_run.model_of(small_run.small_config(root))
        examples = model.module.examples(store, model.config, 0)
        batches = feed.train_batches(examples, 4, threads=0)
        batch = {}
        host = files_run(lambda: batch.update(next(iter(batches))))
        task = make_task(model, examples.spec, sharding.make_mesh(jax.devices()[:1]))
        params, collections = jax.eval_shape(task.init, jax.random.key(0))

        def loss(params, collections, batch, key):
            out, _ = task.apply(params, collections, {}, batch, key)
            weights = {t.name: 1.0 for t in task.objective.terms}
            return task.objective(out, batch, weights, task.objective.normalisers(batch))

        device = files_run(lambda: jax.eval_shape(loss, params, collections, batch, jax.random.key(0)))
    return host, device


def main():
    for title, found in (
        (f"functions of more than {MAX_LINES} lines", long_functions()),
        (f"functions with {MANY_PARAMETERS} or more parameters outside ops/", wide_functions()),
        (f"files of more than {MAX_FILE} lines", long_files()),
    ):
        print(f"{len(found)} {title}")
        for line in found:
            print("  ", *line)
    host, device = files_to_the_loss()
    print(f"{len({*host, *device})} files from a record to the loss of the joint family")
    for title, found in (("a batch of records", host), ("the loss of a batch", device)):
        print(f"   {title}: {', '.join(found)}")


if __name__ == "__main__":
    main()
