"""A person's walk through all stages in a real JupyterLab, by clicks and typing alone: from a folder with one file of data.

Run it by hand for the pictures of the tutorial: `python tests/walk.py adult OUT` or `python tests/walk.py bikes OUT`. With the word
`night` behind, it ends at the validation, and what was clicked is run without anybody in a fresh copy: the figures are compared.
"""
import os, re, shutil, subprocess, sys, tempfile
from pathlib import Path
from typing import NamedTuple
import pandas as pd
import lab
from mlcycle.pipeline import STEPS

DATA = Path(__file__).resolve().parents[2]/'shared/data'


class Case(NamedTuple):
    "What is typed in one walk."
    name: str # of the project
    file: str # in the data folder
    rows: int
    outline: dict # field of the first form → what is chosen or typed
    protected: tuple[str, ...]
    objective: str
    criterion: tuple # metric, direction, threshold
    trials: int
    left_out: tuple[str, ...] = ()


ADULT = Case('adult', 'adult/adult.csv', 2500, {'Target': 'income-per-year', 'Positive': '>50K'}, ('sex',), 'find those who earn more than 50,000 a year',
             ('roc_auc', '>=', '0.8'), 3, ('fnlwgt',))
BIKES = Case('bikes', 'bike_sharing_hourly/hour.csv', 4000, {'Target': 'cnt'}, (), 'know how many bicycles are needed in an hour',
             ('mae', '<=', '120'), 4, ('instant', 'casual', 'registered'))


def lay_out(case: Case, folder: Path, *, rows: int=0) -> Path:
    "A folder with nothing but the data, every k-th row of it."
    folder.mkdir(parents=True, exist_ok=True)
    df = pd.read_csv(DATA/case.file, dtype=str, keep_default_na=False)
    df.iloc[::max(1, len(df)//(rows or case.rows))].to_csv(folder/f'{case.name}.csv', index=False)
    return folder


def begin(seat: lab.Seat, case: Case) -> None:
    "Make the project by the form of an empty folder, and open its home."
    seat.run_all()
    seat.see('A new project')
    seat.type('Name', case.name)
    seat.choose('Target', case.outline['Target'])
    if 'Positive' in case.outline: seat.choose('Positive', case.outline['Positive'])
    for column in case.protected: seat.tag('Protected', column)
    for column in case.left_out: seat.tag('Drop', column)
    seat.shot(f'{case.name}-00-beginning')
    seat.press('Make the project')
    seat.see('Open the home of')
    seat.open(f'{case.name}/notebooks/00_home.ipynb')
    seat.run_all()
    seat.see('Run problem: it has never run.')
    seat.shot(f'{case.name}-01-home')


def step(seat: lab.Seat, case: Case, stage: str) -> None:
    "Open a stage's notebook and run its first cells, as far as the desk."
    seat.open(f'{case.name}/notebooks/{STEPS[stage].notebook}')
    seat.run_to_desk()
    seat.sheet.locator('.mlcycle-desk-part h3', has_text=stage.capitalize()).first.wait_for()


def work(seat: lab.Seat, stage: str, button: str) -> None:
    "Press the button that does a stage's work, and wait until it is done."
    seat.press(button)
    seat.see(f'{stage} is done since', 900)


def seal(seat: lab.Seat, case: Case) -> None:
    "State the question, move the criterion, answer, seal."
    step(seat, case, 'problem')
    seat.type('Objective', case.objective)
    seat.type('Author', 'Ada')
    seat.write('Card')
    line, (metric, direction, threshold) = seat.row('Success', 'Criteria and costs'), case.criterion
    for nth, option in enumerate((metric, direction)): line.locator('select').nth(nth).select_option(label=option)
    line.locator('input[type=text]').first.fill(threshold)
    seat.write('Criteria and costs')
    seat.row('Area', 'Risk questionnaire').locator('select').first.select_option(label='none')
    seat.write('Risk questionnaire')
    work(seat, 'problem', 'Seal the problem and look at the data')
    seat.shot_of('Where the lines lie', f'{case.name}-02-problem')


def clean(seat: lab.Seat, case: Case) -> None:
    "Read the data, accept a proposal if there is one, read them again."
    step(seat, case, 'data')
    seat.type('Live', '0.25')
    seat.write('Split')
    work(seat, 'data', 'Read, look and split')
    seat.shot_of('Columns', f'{case.name}-03-data')


def seal_again(seat: lab.Seat, case: Case) -> None:
    "The split was decided after the seal; so the baselines are measured anew on the rows that are left."
    step(seat, case, 'problem')
    work(seat, 'problem', 'Seal the problem and look at the data')


def search(seat: lab.Seat, case: Case) -> None:
    "Set the budget, search, close the browser in the middle of it and come back, move the threshold."
    step(seat, case, 'development')
    seat.type('Trials', str(case.trials))
    seat.type('Seconds', '900')   # the trials end it, by day and by night, on a slow machine too
    seat.write('What may be tried')
    seat.press('Search within the budget')
    seat.see(re.compile(r'[1-9]\d* of at most|development is done since'))   # of few rows it may be done before one looks
    seat.shot(f'{case.name}-04-searching')
    seat.come_back()
    step(seat, case, 'development')
    seat.see('development is done since', 900)
    seat.shot_of('Leaderboard', f'{case.name}-05-leaderboard')
    if 'Positive' in case.outline:
        seat.turn('Threshold', 'ArrowLeft', 8)
        seat.shot_of('Threshold', f'{case.name}-05a-threshold')


def validate(seat: lab.Seat, case: Case) -> None:
    "Agree to open the sealed rows, and open them."
    step(seat, case, 'validation')
    seat.see('It was opened never for this version')
    seat.agree('I open the sealed test set')
    work(seat, 'validation', 'Open the sealed test set')
    seat.shot_of('Verdicts', f'{case.name}-06-validation')


def look_again(seat: lab.Seat, case: Case) -> None:
    "Run all of a step that is done: what is recorded is shown, and nothing is done twice."
    seat.open(f'{case.name}/notebooks/02_data.ipynb')
    seat.run_all()
    seat.see('nothing has changed since it was last done')


DECIDE = 'Decide about a version'
REASON = 'the verdicts hold, and the gaps are known'


def approve(seat: lab.Seat, case: Case) -> None:
    "Two names that are not the author's sign what is shown whole; then it is promoted, and its bundle is built."
    step(seat, case, 'deployment')
    for name in ('Grace', 'Katherine'): seat.act(DECIDE, 'Approve', by=name, because=REASON)
    seat.shot_of(DECIDE, f'{case.name}-07-approval')
    seat.act(DECIDE, 'Promote to champion', by='Grace', because=REASON)
    work(seat, 'deployment', 'Build the bundle')
    seat.shot(f'{case.name}-08-deployment')


def watch(seat: lab.Seat, case: Case) -> None:
    "Look at production: the rows that the split kept back, answered as if they came now."
    step(seat, case, 'monitoring')
    work(seat, 'monitoring', 'Look at production')
    seat.shot_of('At a glance', f'{case.name}-09-monitoring')


def challenge(seat: lab.Seat, case: Case) -> None:
    "Ask for a challenger by name, and train it."
    step(seat, case, 'retraining')
    seat.act('Ask for a challenger', 'Ask for a challenger', by='Ada', because='see whether newer rows help')
    work(seat, 'retraining', 'Decide, and train if it is due')
    seat.shot_of('Challenger against champion', f'{case.name}-10-challenger')


def fill_card(seat: lab.Seat, case: Case) -> None:
    "Fill a gap of the card by name, and draw up the documents."
    step(seat, case, 'governance')
    seat.act('Fill a gap', 'Write it down', text='Complaints go to the help desk, which answers within a week.', by='Grace')
    work(seat, 'governance', 'Draw up the documents')
    seat.shot_of('Fill a gap', f'{case.name}-11-card')


def plan_end(seat: lab.Seat, case: Case) -> None:
    "Read the plan of the retirement step by step; nothing is deleted."
    step(seat, case, 'retirement')
    seat.see('What is archived first')
    work(seat, 'retirement', 'Plan it again')
    seat.shot_of('The plan, step by step', f'{case.name}-12-retirement')


FIRST = (begin, seal, clean, search, validate, look_again)
TO_COMPARE = (begin, seal, clean, seal_again, search, validate)
STAGES = (*FIRST, approve, watch, challenge, fill_card, plan_end)


def walk(case: Case, folder: Path, shots: Path | None=None, *, dark: bool=False, stages=STAGES) -> lab.Seat:
    "All of it; returns the seat with the strangers that the page asked for."
    with tempfile.TemporaryDirectory() as home, lab.seat_at(folder, Path(home), shots=shots, dark=dark) as seat:
        seat.open('home.ipynb')
        try:
            for stage in stages: stage(seat, case)
        except Exception:
            seat.shot(f'{case.name}-stopped')
            raise
        return seat


def night_apart(case: Case, folder: Path, fresh: Path) -> list[str]:
    "Run what was clicked, up to the validation, in a copy of settings, notebooks and data; names of what its results say otherwise."
    from mlcycle.core import Project
    from mlcycle.development import Leaderboard
    from mlcycle.validation import Validation
    shutil.copytree(folder/case.name, fresh/case.name, ignore=shutil.ignore_patterns('store', 'reports'))
    shutil.copy(folder/f'{case.name}.csv', fresh)
    subprocess.run([sys.executable, '-c', 'from mlcycle.cli import main; main()', '--project', fresh/case.name, 'run', 'problem', 'data', 'development', 'validation'],
                   check=True, capture_output=True, timeout=1200, env={**os.environ, **lab.THREADS})
    apart, own = [], {'budget', 'model_hash'}   # seconds spent, and the bytes of a file with its date
    for result in (Leaderboard, Validation):
        by_day, by_night = (Project(place/case.name, read_only=True).latest(result).body() for place in (folder, fresh))
        apart += [f'{result.__name__}.{k}' for k in by_day | by_night if k not in own and by_day.get(k) != by_night.get(k)]
    return apart


if __name__ == '__main__':
    case, out, how = {'adult': ADULT, 'bikes': BIKES}[sys.argv[1]], Path(sys.argv[2]), sys.argv[3:]
    folder = lay_out(case, out/'folder')
    print('strangers asked:', walk(case, folder, out/'shots', dark='dark' in how, stages=TO_COMPARE if 'night' in how else STAGES).strangers)
    if 'night' in how:
        (out/'fresh').mkdir()
        print('differs at night:', night_apart(case, folder, out/'fresh'))
