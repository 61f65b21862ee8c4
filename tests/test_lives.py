"""Five real data sets, each from `mlcycle new` to a retirement dry run, by the command line alone."""
import json, subprocess, sys
from pathlib import Path
import pandas as pd, pytest
from waiting import on_one_day, today

MLCYCLE = Path(sys.executable).parent/'mlcycle'


class Life:
    "A project driven from outside, as a person would."
    def __init__(self, folder: Path): self.folder = folder

    def call(self, *words, status: int=0) -> str:
        done = subprocess.run([MLCYCLE, *map(str, words)], cwd=self.folder if self.folder.exists() else self.folder.parent, capture_output=True, text=True)
        assert done.returncode == status, f'{words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}'
        assert 'Traceback' not in done.stderr, done.stderr
        return done.stdout+done.stderr

    def json(self, *words, status: int=0) -> object: return json.loads(self.call(*words, '--json', status=status))

    def begin(self, data: Path, target: str, *options, budget: str='trials = 3\nseconds = 900') -> None:
        self.call('new', self.folder, '--data', data, '--target', target, *options)
        toml = self.folder/'mlcycle.toml'
        toml.write_text(toml.read_text().replace('trials = 30\nseconds = 60', budget).replace('author = ""', 'author = "Ada"'))

    def set(self, old: str, new: str) -> None:
        toml = self.folder/'mlcycle.toml'
        assert old in toml.read_text(), old
        toml.write_text(toml.read_text().replace(old, new))

    def states(self) -> dict[str, str]: return {s['stage']: s['state'] for s in self.json('status')['stages']}

    def evidence(self, kind: str, subject: str | None=None) -> dict:
        from mlcycle.core import Project
        return Project(self.folder, read_only=True).ledger.last(kind, subject).body

    def live(self) -> dict:
        "Run, sign, promote, run on; returns the test figures."
        waits = self.call('run', status=1)
        assert 'mlcycle approve 1' in waits
        states = self.states()
        assert [s for s, state in states.items() if state != 'done'] == ['deployment'] and states['deployment'] == 'blocked', states
        for name in ('Grace', 'Hedy'): self.call('approve', '1', '--as', name, '--because', 'read the report')
        self.call('promote', '1', '--to', 'champion')
        found = on_one_day(lambda: (self.call('run'), self.json('status'))[1], today())
        assert {s['state'] for s in found['stages']} == {'done'}, found['stages']
        return found['metrics']

    def produce(self, rows: pd.DataFrame, target: str) -> None:
        "Score rows as if they were new, hand in their outcomes, look."
        rows.drop(columns=target).to_csv(self.folder/'new.csv', index=False)
        self.call('score', 'new.csv', '--out', 'scores.csv')
        scores = pd.read_csv(self.folder/'scores.csv')
        assert len(scores) == len(rows) and scores.prediction_id.is_unique
        pd.DataFrame({'prediction_id': scores.prediction_id, 'label': rows[target].to_numpy()}).to_csv(self.folder/'labels.csv', index=False)
        assert str(len(rows)) in self.call('label', 'labels.csv').replace(',', '')
        found = self.json('monitor')
        assert sum(w['labelled'] for w in found['windows']) >= len(rows)

    def end(self) -> None:
        "The documents, the audit, and a retirement that is only planned."
        assert self.json('audit')['ok'] and self.json('history')[0]['version'] == '1'
        assert 'Missing' in self.call('card') or 'missing' in self.call('card')
        assert 'dry run' in self.call('retire', '1', '--because', 'end of test')
        assert self.states()['deployment'] in ('done', 'stale')


@pytest.fixture
def life(tmp_path) -> Life: return Life(tmp_path/'project')


def test_adult(life, data_dir):
    "Missing values as '?', two protected attributes, and a test ROC AUC of 0.92."
    life.begin(data_dir/'adult/adult.csv', 'income-per-year', '--positive', '>50K', '--protected', 'sex', '--protected', 'race', budget='trials = 6\nseconds = 900')
    metrics = life.live()
    assert metrics['roc_auc']['status'] == 'ok' and metrics['roc_auc']['value'] >= 0.92
    treatments = str(life.evidence('schema'))
    assert "'?'" in treatments and 'workclass' in treatments
    groups = str(life.evidence('validation', '1')['by_group'])
    assert 'Amer-Indian-Eskimo' in groups and 'Female' in groups
    rows = pd.read_csv(data_dir/'adult/adult.csv').sample(400, random_state=1)
    life.produce(rows, 'income-per-year')
    life.end()


def test_hotel_bookings(life, data_dir, tmp_path):
    "Time order, leakage columns, outcomes known weeks later."
    from mlcycle.core import Project
    rows = pd.read_csv(data_dir/'hotel_bookings_h1/H1.csv', keep_default_na=False, dtype=str)
    arrival = pd.to_datetime(rows.ArrivalDateYear+' '+rows.ArrivalDateMonth+' '+rows.ArrivalDateDayOfMonth, format='%Y %B %d')
    rows['BookedAt'] = (arrival-pd.to_timedelta(rows.LeadTime.astype(int), unit='D')).dt.strftime('%Y-%m-%d')
    rows.sample(3_500, random_state=0).sort_index().to_csv(tmp_path/'bookings.csv', index=False)
    life.begin(tmp_path/'bookings.csv', 'IsCanceled', '--time', 'BookedAt', '--label-time', 'ReservationStatusDate', '--protected', 'Country', '--drop', 'ReservationStatus')
    metrics = life.live()
    assert metrics['roc_auc']['value'] > 0.7
    assert life.evidence('split')['strategy'] == 'time'
    assert 'ReservationStatus' in str(life.evidence('feasibility')) or 'ReservationStatus' in str(life.evidence('schema'))
    found = json.loads(subprocess.run([MLCYCLE, 'monitor', '--json'], cwd=life.folder, capture_output=True, text=True).stdout)
    assert len(found['windows']) > 2 and sum(w['labelled'] for w in found['windows']) > 100
    life.end()


def test_bike_sharing(life, data_dir, tmp_path):
    "Regression; casual + registered give the target away and are flagged, then dropped."
    pd.read_csv(data_dir/'bike_sharing_hourly/hour.csv').tail(6_000).to_csv(tmp_path/'hour.csv', index=False)
    life.begin(tmp_path/'hour.csv', 'cnt', '--time', 'dteday', '--id', 'instant')
    life.call('run', 'problem', 'data')
    flagged = str(life.evidence('schema'))+str(life.evidence('feasibility'))
    assert 'casual' in flagged and 'registered' in flagged
    life.set('drop = []', 'drop = ["casual", "registered"]')
    metrics = life.live()
    assert metrics['r2']['value'] > 0.5 and metrics['rmse']['low'] < metrics['rmse']['value'] < metrics['rmse']['high']
    life.end()


def test_penguins(life, data_dir):
    "Three classes and 344 rows: small groups are not estimable, and nothing pretends."
    life.begin(data_dir/'penguins/penguins.csv', 'species', '--protected', 'sex')
    metrics = life.live()
    assert metrics['accuracy']['value'] > 0.9
    rows = pd.read_csv(data_dir/'penguins/penguins.csv').head(60)
    life.produce(rows, 'species')
    life.end()


def test_titanic(life, data_dir):
    "Names with commas and quotes, tickets of mixed form, ages missing."
    life.begin(data_dir/'titanic/titanic.csv', 'survived', '--protected', 'sex')
    metrics = life.live()
    assert 0.75 < metrics['roc_auc']['value'] < 0.95
    rows = pd.read_csv(data_dir/'titanic/titanic.csv').tail(80)
    life.produce(rows, 'survived')
    life.end()
