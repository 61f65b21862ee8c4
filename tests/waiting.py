"""Waiting for what another process or thread brings about, as long as a slow and busy machine may need."""
import time

PATIENCE = 180   # seconds: a wait that is over at once where all is well


def until(holds, *, seconds: float=PATIENCE):
    "Wait until something holds; what it gave."
    end = time.monotonic()+seconds
    while not (found := holds()):
        assert time.monotonic() < end, f'waited {seconds:g} s in vain'
        time.sleep(.05)
    return found


def today() -> str: return time.strftime('%Y-%m-%d', time.gmtime())


def on_one_day(act, begun: str):
    "What an act gave; done again where midnight UTC has passed since a day: what depends on the date is made anew on each."
    while True:
        found, day = act(), today()
        if day == begun: return found
        begun = day
