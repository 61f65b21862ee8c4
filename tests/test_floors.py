"""Three floors, arrows only downwards: read from the imports of the exported modules, and from what a fresh process loads."""
import ast, re, subprocess, sys
from pathlib import Path
import pytest

PACKAGE = Path(__file__).resolve().parents[1]/'mlcycle'
HEADER = re.compile(r'File to edit: \.\./nbs/(?P<number>\d\d)(?P<letters>[a-z]*\d*)_')
LAZY = {('core', 'ledger'), ('core', 'tables'), ('core', 'registry'), ('ledger', 'registry')}   # a Project opens its parts when asked
HEAVY = ('pandas', 'numpy', 'sklearn', 'mlflow', 'shap', 'deltalake', 'sqlalchemy', 'matplotlib', 'pyarrow', 'optuna', 'papermill')


def modules() -> dict[str, tuple[int, str]]:
    "Module → the number of its notebook and the rest of it, which order as names in a folder do: 000_ground, 00_core, 00a_ledger, 00aa_log."
    found = {}
    for path in PACKAGE.glob('*.py'):
        header = HEADER.search(path.read_text())
        if header: found[path.stem] = (int(header['number']), header['letters']+'_')
    return found


def imports_of(path: Path) -> set[str]:
    "The modules of mlcycle that a module imports, at its top or inside a function."
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level and not node.module: names |= {a.name for a in node.names}
            elif node.level: names.add(node.module.split('.')[0])
            elif (node.module or '').startswith('mlcycle.'): names.add(node.module.split('.')[1])
            elif node.module == 'mlcycle': names |= {a.name for a in node.names}
        elif isinstance(node, ast.Import): names |= {a.name.split('.')[1] for a in node.names if a.name.startswith('mlcycle.')}
    return names & set(modules())


def test_every_module_is_made_from_a_notebook():
    strangers = {p.stem for p in PACKAGE.glob('*.py')}-set(modules())-{'__init__', '_modidx'}
    assert not strangers


@pytest.mark.parametrize('name', sorted(modules()))
def test_arrows_point_downwards(name):
    where = modules()
    number, _ = where[name]
    for imported in imports_of(PACKAGE/f'{name}.py'):
        other, _ = where[imported]
        assert other <= number, f'{name} ({number:02}) imports {imported} ({other:02})'
        if 1 <= number <= 9: assert other in (0, number), f'stage {name} imports stage {imported}'
        if number == 0: assert other == 0
        if (name, imported) not in LAZY and number == other == 0: assert where[imported] < where[name], f'{name} imports its higher neighbour {imported}'


def loaded_after(code: str) -> set[str]:
    probe = f'{code}\nimport sys; print(*sorted({{m.split(".")[0] for m in sys.modules}}))'
    done = subprocess.run([sys.executable, '-c', probe], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_import_is_instant():
    assert not loaded_after('import mlcycle') & set(HEAVY)
    assert not loaded_after('import mlcycle.core, mlcycle.ledger, mlcycle.gates, mlcycle.pipeline, mlcycle.cli') & set(HEAVY)


def test_help_loads_nothing_heavy():
    assert not loaded_after("from mlcycle.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass") & set(HEAVY)


DANGEROUS = {'eval', 'exec', 'pickle.load', 'pickle.loads', 'joblib.load', 'cloudpickle.load', 'cloudpickle.loads', 'yaml.load', 'tarfile.open',
             'os.system', 'torch.load', 'numpy.load', 'np.load', 'skops.io.load', 'skops.io.loads', 'zipfile.ZipFile', 'ZipFile', 'sio.load', 'sio.loads'}
ALLOWED = {'modelfiles': {'skops.io.loads'}, 'formats': {'zipfile.ZipFile'}}


@pytest.mark.parametrize('name', sorted(modules()))
def test_nothing_supplied_is_executed(name):
    "Loaders that can run code or leave a folder are called in named modules only."
    called = {ast.unparse(n.func) for n in ast.walk(ast.parse((PACKAGE/f'{name}.py').read_text())) if isinstance(n, ast.Call)}
    assert called & DANGEROUS <= ALLOWED.get(name, set())


LOADERS = {'pickle', '_pickle', 'joblib', 'cloudpickle', 'dill', 'marshal', 'shelve', 'tarfile', 'zipfile', 'shutil.unpack_archive', 'yaml', 'torch', 'runpy', 'code', 'builtins'}
IMPORTED = {'formats': {'zipfile'}}


@pytest.mark.parametrize('name', sorted(modules()))
def test_loaders_are_not_imported_under_another_name(name):
    "What is not imported cannot be called by an alias; names built from text are not called at all."
    tree = ast.parse((PACKAGE/f'{name}.py').read_text())
    whole = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    parts = {f'{n.module}.{a.name}' for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module for a in n.names} | {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    assert (whole | parts | {w.split('.')[0] for w in whole | parts}) & LOADERS <= IMPORTED.get(name, set())
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert not names & {'__import__', 'eval', 'exec', 'import_module', 'unpack_archive', 'allow_pickle', 'read_pickle', 'to_pickle'}
    shells = [n for n in ast.walk(tree) if isinstance(n, ast.keyword) and (n.arg == 'allow_pickle' or (n.arg == 'shell' and getattr(n.value, 'value', True)))]
    assert not shells


def test_every_dangerous_call_of_the_list_is_still_there():
    "An entry of the allow-list that nobody needs any more is an open door."
    for name, allowed in IMPORTED.items():
        assert all(module in (PACKAGE/f'{name}.py').read_text() for module in allowed), name
