"""A person makes a job definition in JupyterLab's own dialogue, by clicks and typing, and the scheduler of the server runs the stage.

Run it by hand, it waits for the next minute: `python tests/appointment.py OUT`. It needs pip install jupyter-scheduler.
"""
import subprocess, sys, tempfile, time
from pathlib import Path
import pandas as pd
import lab

CREATE = 'jp-button[data-command="scheduling:create-from-notebook"]'
NAME = 'a card every minute'


def lay_out(folder: Path) -> Path:
    "A project with a little data; nothing has run yet."
    folder.mkdir(parents=True)
    pd.DataFrame({'x': range(200), 'y': [0, 1]*100}).to_csv(folder/'data.csv', index=False)
    subprocess.run([Path(sys.executable).parent/'mlcycle', 'new', folder/'home', '--data', folder/'data.csv', '--target', 'y'], check=True, capture_output=True)
    return folder/'home'


def type_in(field, text: str) -> None:
    "Type, and let the dialogue take it in, as it does for a person's speed."
    field.fill(text)
    field.page.wait_for_timeout(500)


def add_line(dialogue, i: int) -> None:
    "Press + until the line is there: the first press may only leave the field before."
    for _ in range(5):
        dialogue.get_by_title('Add new parameter').last.click()
        dialogue.page.wait_for_timeout(700)
        if dialogue.locator(f'[name="parameter-{i}-name"]').count(): return
    raise AssertionError('the dialogue adds no parameter')


def fill_in(seat: lab.Seat, parameters: dict[str, str]) -> None:
    "Open the dialogue from the notebook's toolbar, type the parameters, choose every minute, create."
    seat.sheet.locator(CREATE).click()
    dialogue = seat.page.locator('#jp-main-dock-panel')
    dialogue.get_by_text('HTML', exact=True).wait_for(timeout=60_000)
    for i, (name, value) in enumerate(parameters.items()):
        add_line(dialogue, i)
        type_in(dialogue.locator(f'[name="parameter-{i}-name"]'), name)
        type_in(dialogue.locator(f'[name="parameter-{i}-value"]'), value)
    type_in(dialogue.locator('#jp-create-job-jobName'), NAME)
    dialogue.get_by_text('Run on a schedule').click()
    dialogue.locator('.MuiSelect-select').last.click()
    seat.page.get_by_role('option', name='Minute').click()
    seat.page.wait_for_timeout(500)   # the list fades
    seat.shot('1-dialogue')
    dialogue.get_by_role('button', name='Create', exact=True).click()
    dialogue.get_by_text(NAME).first.wait_for(timeout=30_000)
    seat.shot('2-definition')


def drawn_up(home: Path, seconds: float) -> list[dict]:
    "Wait for a card in the ledger; the cards that are there."
    from mlcycle.core import Project
    until = time.monotonic()+seconds
    while time.monotonic() < until:
        cards = [e.body for e in Project(home, read_only=True).ledger.entries('card')]
        if cards: return cards
        time.sleep(1)
    return []


def keep_appointment(out: Path) -> list[dict]:
    "The cards that the scheduler's own run of the governance stage left in the ledger."
    home = lay_out(out/'folder')
    with tempfile.TemporaryDirectory() as settings, lab.seat_at(home, Path(settings), shots=out/'shots') as seat:
        seat.open('notebooks/08_governance.ipynb')
        try: fill_in(seat, {'project': repr(str(home)), 'view': repr('plain')})   # as Python: it writes them into the notebook as they are
        except Exception: seat.shot('stopped'); raise
        cards = drawn_up(home, 180)
        seat.page.locator('.MuiTab-root').first.click()   # Jobs, beside Job Definitions
        seat.page.wait_for_timeout(3000)
        seat.page.get_by_role('button', name='Reload').click()
        seat.page.get_by_text('Completed').first.wait_for(timeout=60_000)
        seat.shot('3-jobs')
    return cards


if __name__ == '__main__':
    cards = keep_appointment(Path(sys.argv[1]))
    assert [c['view'] for c in cards[:1]] == ['plain'], cards
    print(f'{len(cards)} card drawn up by the scheduler, view {cards[0]["view"]}, {len(cards[0]["gaps"])} gaps')
